// The doctor in the browser: what dpo_lab/workbench/doctor does, for a file that never leaves the reader's machine.
// Words and thresholds come from Python (`page.limits`, `page.causes`); a browser test holds both to the same findings.
"use strict";

(() => {
  const page = JSON.parse(document.getElementById("doctor-data").textContent);
  const L = page.limits, LOG_2 = Math.log(2);

  // Numbers as Python writes them.
  const fixed = (x, n) => x.toFixed(n), signed = (x, n) => (x >= 0 ? "+" : "") + x.toFixed(n);
  const percent = x => (100 * x).toFixed(0) + "%";
  const short = (x, n = 3) => {
    if (x === 0 || !Number.isFinite(x)) return String(x);
    const [mantissa, power] = x.toExponential(n - 1).split("e").map(Number);
    if (power >= -4 && power < n) return String(Number(x.toPrecision(n)));
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  };
  const number = value => {
    if (typeof value === "number") return value;
    if (typeof value !== "string" || !value.trim()) return null;
    const word = value.trim().toLowerCase().match(/^([-+]?)(nan|inf)(inity)?$/);
    if (word) return word[2] === "nan" ? NaN : word[1] === "-" ? -Infinity : Infinity;
    return Number.isNaN(Number(value)) ? null : Number(value);
  };
  const mean = all => all.reduce((sum, one) => sum + one, 0) / all.length;
  const variance = all => mean(all.map(one => (one - mean(all)) ** 2));
  const median = all => { const a = [...all].sort((x, y) => x - y), m = a.length >> 1; return a.length % 2 ? a[m] : (a[m - 1] + a[m]) / 2; };
  const last = all => all[all.length - 1];

  // ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

  const parse = text => JSON.parse(text.replace(/([:[,]\s*)(-?(?:NaN|Infinity))(?=\s*[,}\]])/g, '$1"$2"'));
  const lines = text => text.split("\n").flatMap((line, i, all) => {
    try { return line.trim() ? [parse(line)] : []; } catch {
      if (i === all.length - 1) return []; // cut off
      throw new Error(`line ${i + 1} is no JSON object; restore the file, or delete that line`);
    }
  });
  const cells = text => {
    const rows = [[""]];
    let quoted = false;
    for (const [, quote, sign, other] of text.replace(/^\ufeff/, "").matchAll(/(""?)|([,\n])|([^",\n]+)/g)) {
      const row = last(rows);
      if (quote === '""' && quoted) row[row.length - 1] += '"';
      else if (quote === '"') quoted = !quoted;
      else if (sign && !quoted) sign === "," ? row.push("") : rows.push([""]);
      else row[row.length - 1] += sign ?? other ?? "";
    }
    const names = rows.shift().map(one => one.replace(/\r$/, "")), runs = new Set(names.filter(one => one.includes(" - ")).map(one => one.slice(0, one.lastIndexOf(" - "))));
    if (runs.size > 1) throw new Error(`it holds the columns of ${runs.size} runs; export one run at a time`);
    return rows.filter(row => row.length > 1 || row[0].trim()).map(row => Object.fromEntries(
      names.flatMap((name, i) => /__(MIN|MAX)$/.test(name) ? [] : [[name, (row[i] ?? "").replace(/\r$/, "")]])));
  };

  const ours = name => {
    const base = name.slice(name.lastIndexOf(" - ") + (name.includes(" - ") ? 3 : 1)).replace(/^train\//, "").replace(/^eval\//, "eval_");
    const prefix = base.startsWith("eval_") ? "eval_" : "", bare = base.slice(prefix.length);
    return prefix + (page.aliases[bare] ?? bare);
  };

  // Files of one run, {name: text} → {series: metric → [[step, value], …], facts}.
  function read(files) {
    const facts = {}, columns = {}, known = new Set(page.known);
    const name = ["metrics.jsonl", "trainer_state.json", "trainer_log.jsonl"].find(one => one in files)
      ?? Object.keys(files).find(one => /\.(jsonl?|ndjson|csv)$/.test(one));
    if (!name) throw new Error("none of the files is a log that can be read here: .json, .jsonl, .ndjson or .csv");
    let rows, at = 0;
    if (name.endsWith(".csv")) rows = cells(files[name]);
    else if (name.endsWith(".json")) {
      const state = parse(files[name]);
      rows = Array.isArray(state) ? state : state.log_history ?? [];
      if (state.max_steps) facts.num_steps = state.max_steps;
    } else rows = lines(files[name]);
    if (name === "metrics.jsonl" && files["config.json"]) {
      const { beta, loss, max_grad_norm } = parse(files["config.json"]).settings ?? {};
      if (beta != null) facts.beta = beta;
      if (loss != null) facts.loss = loss;
      if (max_grad_norm !== undefined) facts.max_grad_norm = max_grad_norm || Infinity;
    }
    const add = row => {
      for (const [own, fact] of [["num_steps", "num_steps"], ["total_steps", "num_steps"], ["beta", "beta"]])
        if (number(row[own]) !== null) facts[fact] = number(row[own]);
      const found = Object.entries(row).filter(([, value]) => value !== null && value !== "")
        .map(([key, value]) => [ours(key), number(value)]).filter(([key]) => known.has(key.replace(/^eval_/, "")));
      if (!found.length) return;
      const column = page.steps.find(one => one in row), cell = column && row[column];
      const step = cell != null && cell !== "" ? number(cell) : at + (column ? 0 : 1);
      if (step === null || !(step >= 0) || step !== Math.floor(step)) return;
      at = step;
      for (const [key, value] of found) if (value !== null) (columns[key] ??= new Map()).set(step, value);
    };
    rows.forEach(add);
    if (!Object.keys(columns).length) throw new Error(`${name} has no metric that is known here; it needs at least a loss`);
    const answers = name === "metrics.jsonl" ? lines(files["samples.jsonl"] ?? "").filter(row => "before" in row && "after" in row) : [];
    const words = side => mean(answers.map(row => String(row[side]).split(/\s+/).filter(Boolean).length));
    if (answers.length && words("before")) {
      const end = Math.max(...Object.values(columns).map(one => Math.max(...one.keys())));
      add({ step: 0, answer_length: words("before") });
      add({ step: end, answer_length: words("after") });
    }
    const series = Object.fromEntries(Object.entries(columns).map(([key, one]) => [key, [...one].sort((a, b) => a[0] - b[0])]));
    return { series, facts };
  }

  // ── findings, one function per cause, as in findings.py ──────────────────────────────────────────────────────────

  function diagnose({ series, facts }) {
    const values = name => (series[name] ?? []).map(one => one[1]).filter(Number.isFinite);
    const lastStep = Math.max(...Object.values(series).map(one => last(one)[0]));
    const parts = (all, num) => Array.from({ length: num }, (_, i) => {
      const size = Math.floor(all.length / num), more = all.length % num, from = i * size + Math.min(i, more);
      return mean(all.slice(from, from + size + (i < more ? 1 : 0)));
    });
    const ends = all => { const num = Math.max(1, Math.floor(all.length / 10)); return [mean(all.slice(0, num)), mean(all.slice(-num))]; };
    const change = name => {
      const held = values(`eval_${name}`), all = values(name), num = Math.max(3, Math.floor(all.length / 10));
      if (held.length >= 2) return last(held) - held[0];
      if (all.length < 10) return null;
      const first = all.slice(0, num), end = all.slice(-num), difference = mean(end) - mean(first);
      return Math.abs(difference) > 2 * Math.sqrt((variance(first) + variance(end)) / num) ? difference : 0;
    };
    const betaOf = () => {
      if (typeof facts.beta === "number") return facts.beta;
      for (const side of ["chosen", "rejected"]) {
        const rewards = values(`eval_rewards/${side}`), logps = values(`eval_logps/${side}`);
        if (rewards.length >= 2 && rewards.length === logps.length && Math.abs(last(logps) - logps[0]) > 0.1)
          return (last(rewards) - rewards[0]) / (last(logps) - logps[0]);
      }
      return null;
    };
    const moved = side => { const beta = betaOf(), rewards = change(`rewards/${side}`); return beta && rewards !== null ? rewards / beta : change(`logps/${side}`); };
    const loss = values("loss"), norm = values("grad_norm"), accuracy = values("rewards/accuracies"), gaps = values("rewards/margins");
    const startsAtLog2 = loss.length > 0 && accuracy.length > 0 && Math.abs(loss[0] - LOG_2) < 0.05;
    const withoutReference = () => {
      if (page.without_reference.includes(facts.loss)) return true;
      const rewards = values("rewards/chosen"), logps = values("logps/chosen");
      if (rewards.length < 3 || rewards.length !== logps.length || logps.some(one => one === 0)) return false;
      const ratios = rewards.map((one, i) => one / logps[i]);
      return Math.max(...ratios) - Math.min(...ratios) < 0.02 * Math.abs(mean(ratios));
    };

    const checks = {
      not_finite() {
        for (const [name, all] of Object.entries(series)) {
          const bad = all.filter(one => !Number.isFinite(one[1])), said = String(bad[0]?.[1]).replace("NaN", "nan").replace("Infinity", "inf");
          if (bad.length) return [name === "grad_norm" && bad.length === 1 ? "warning" : "problem", "certain", `${name} is ${said} at step ${bad[0][0]}, the first of ${bad.length} such values.`];
        }
      },
      wrong_reference() {
        if (withoutReference()) return;
        for (const prefix of ["eval_", ""])
          for (const side of ["chosen", "rejected"]) {
            const [[step, first], next] = series[`${prefix}rewards/${side}`] ?? [[null]], exact = step === 0 || (step === 1 && !prefix);
            if (step === null || (prefix && !exact)) continue;
            const allowed = exact ? L.AT_START : L.AT_START + 2 * Math.abs(first - (next ? next[1] : 0));
            if (Math.abs(first) > allowed)
              return ["problem", exact ? "certain" : "likely", `The first reward of ${side} answers is ${signed(first, 3)} at step ${step}; 0 is right before training.`];
          }
      },
      stuck() {
        if (!startsAtLog2 || lastStep < L.FEWEST_STEPS || loss.length < 3) return;
        const late = parts(loss, 3)[2], rewards = [...values("rewards/chosen"), ...values("rewards/rejected")];
        if (late < LOG_2 - L.NEAR_LOG_2 || (gaps.length >= 3 && Math.abs(parts(gaps, 3)[2]) > L.NO_MARGIN)) return;
        const seen = `Over the last third the loss is ${fixed(late, 4)} on average, and log 2 is ${fixed(LOG_2, 4)}.`;
        if (rewards.length && rewards.every(one => one === 0)) return ["problem", "certain", `${seen} All rewards are exactly 0: no weight moves, or the reference is the policy itself.`];
        if (norm.length && Math.max(...norm) < 1e-6) return ["problem", "certain", `${seen} The gradient is 0: both answers are the same tokens.`];
        return ["problem", "likely", seen + (rewards.length ? ` Rewards move (by up to ${short(Math.max(...rewards.map(Math.abs)), 2)}), the margin does not.` : "")];
      },
      learning_rate() {
        if (!startsAtLog2 || loss.length < L.FEWEST_STEPS) return;
        const worst = Math.max(...parts(loss, 10)), spikes = norm.filter((one, i) => i >= 10 && one > L.SPIKE * median(norm.slice(i - 10, i))).length;
        if (worst < LOG_2 + L.WORSE) return;
        const seen = `Over a tenth of the run the loss is ${fixed(worst, 3)} on average (${short(Math.max(...loss))} at most); log 2 is ${fixed(LOG_2, 3)}.`;
        return ["problem", spikes ? "certain" : "likely", seen + (spikes ? ` ${spikes} of ${norm.length} gradient norms are ${L.SPIKE} times the median of the ten before.` : "")];
      },
      overfitting() {
        const held = values("eval_loss"), lowest = Math.min(...held);
        if (held.length < 2 || loss.length < 3) return;
        const [first, end] = ends(loss);
        if (end < first && last(held) - lowest > L.HELD_OUT_RISE && end < last(held))
          return [last(held) > held[0] ? "problem" : "warning", "certain", `The held-out loss was lowest at step ${series.eval_loss.find(one => one[1] === lowest)[0]} (${fixed(lowest, 3)}) and ends at ${fixed(last(held), 3)}; that of training ends at ${fixed(end, 3)}.`];
        if (last(held) - end > L.GAP) return ["warning", "certain", `At the end the held-out loss is ${fixed(last(held), 3)} and that of training ${fixed(end, 3)}.`];
      },
      margins() {
        if (gaps.length < 6) return;
        const [, middle, late] = parts(gaps, 3), end = ends(gaps)[1];
        if (end >= L.SURE && late >= middle + L.GROWS) return ["warning", "certain", `The mean margin is ${fixed(end, 1)} at the end, ${fixed(late, 1)} over the last third and ${fixed(middle, 1)} over the one before.`];
      },
      memorised() {
        if (accuracy.length < 3 || loss.length < 3 || ends(accuracy)[1] < L.ALL_RIGHT || ends(loss)[1] > L.NO_LOSS) return;
        const held = values("eval_rewards/accuracies"), seen = `Over the last tenth accuracy is ${fixed(ends(accuracy)[1], 3)} and the loss ${fixed(ends(loss)[1], 4)}.`;
        if (!held.length) return ["warning", "likely", seen];
        return ["warning", "certain", `${seen} Accuracy on held-out pairs is ${fixed(last(held), 3)}: ${last(held) < 0.9 ? "memorised" : "too easy, or a shortcut that held-out pairs share"}.`];
      },
      kl() {
        for (const all of [values("eval_kl"), values("kl")])
          if (all.length) return last(all) > L.FAR ? ["problem", "certain", `The KL from the reference is ${fixed(last(all), 1)} nats per answer.`] : undefined;
        const nats = moved("chosen");
        if (nats !== null && nats <= -L.FAR) return ["warning", "possible", `Chosen answers have lost ${fixed(-nats, 0)} nats each; no KL was measured.`];
      },
      displacement() {
        const chosen = moved("chosen"), rejected = moved("rejected");
        if (chosen === null || rejected === null || chosen > -L.FALLEN || chosen > L.SHARED * rejected || chosen < rejected) return;
        const held = values("eval_rewards/chosen").length >= 2 || values("eval_logps/chosen").length >= 2;
        return ["warning", held ? "certain" : "likely", `Log-probs moved by ${signed(chosen, 1)} nats per chosen answer and ${signed(rejected, 1)} per rejected one.`];
      },
      length() {
        for (const all of [values("eval_answer_length"), values("answer_length")])
          if (all.length >= 2 && ends(all)[1] > L.LONGER * ends(all)[0])
            return ["warning", all.length >= 10 ? "likely" : "possible", `Sampled answers grew from ${fixed(ends(all)[0], 1)} to ${fixed(ends(all)[1], 1)}.`];
      },
      too_short() {
        const rate = values("learning_rate"), end = rate[rate.length - 1] / Math.max(...rate);
        if (typeof facts.num_steps === "number" && lastStep < 0.95 * facts.num_steps) return ["warning", "certain", `The log ends at step ${lastStep} of ${short(facts.num_steps, 6)}.`];
        if (lastStep < L.FEWEST_STEPS) return ["warning", "likely", `The run has ${lastStep} steps.`];
        if (rate.length >= 10 && last(rate) < rate[rate.length - 3] && end > 0.2) return ["warning", "likely", `The learning rate was falling to 0, and the log ends at ${percent(end)} of its peak.`];
      },
      clipped() {
        const stated = facts.max_grad_norm, limit = stated ?? 1, share = norm.filter(one => one > limit).length / norm.length;
        if (norm.length < 10 || share < L.CLIPPED) return;
        const far = median(norm) > L.FAR_ABOVE * limit, seen = `${percent(share)} of the gradient norms are above ${short(limit, 6)} (median ${short(median(norm))}).`;
        if (stated === undefined) return far ? ["warning", "possible", `${seen} The log does not state the limit; 1 is the usual one.`] : undefined;
        return [far ? "warning" : "note", "certain", seen];
      },
    };
    const found = Object.keys(page.causes).flatMap(cause => { const one = checks[cause]?.(); return one ? [[cause, ...one]] : []; });
    const levels = ["problem", "warning", "note"], sure = ["certain", "likely", "possible"];
    return found.sort((a, b) => levels.indexOf(a[1]) - levels.indexOf(b[1]) || sure.indexOf(a[2]) - sure.indexOf(b[2]));
  }

  // ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────

  const out = document.getElementById("doctor-findings"), input = document.getElementById("doctor-file");
  const say = (parent, tag, text) => { const made = parent.appendChild(document.createElement(tag)); made.textContent = text; return made; };

  function show(files) {
    out.replaceChildren();
    let found;
    try { found = diagnose(read(files)); } catch (error) { say(out, "p", `This cannot be read: ${error.message}.`); return; }
    if (found.every(one => one[1] === "note")) say(out, "p", "Nothing is wrong in what this log shows.");
    for (const [cause, level, sureness, seen] of found) {
      const { title, means, remedy, notebook } = page.causes[cause];
      say(out, "h3", `${title} (${level}, ${sureness})`);
      say(out, "p", seen);
      say(out, "p", means);
      say(out, "p", remedy).append(" ");
      const link = say(out.lastChild, "a", `Chapter ${Number(notebook.slice(0, 2))} shows it.`);
      link.href = `notebooks/${notebook}.html`;
    }
  }
  async function take(files) {
    show(Object.fromEntries(await Promise.all([...files].map(async file => [file.name, await file.text()]))));
  }

  input.addEventListener("change", () => take(input.files));
  const zone = input.closest(".doctor");
  zone.addEventListener("dragover", event => event.preventDefault());
  zone.addEventListener("drop", event => { event.preventDefault(); take(event.dataTransfer.files); });
  window.doctor = { read, diagnose }; // for the test
})();
