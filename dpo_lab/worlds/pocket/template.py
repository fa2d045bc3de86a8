"""The pocket world's chat template: turns between marks, tools as a short list of signatures.

<|im_start|>system
You can use tools.
Tools:
weather(city)
timer(minutes)<|im_end|>
<|im_start|>user
How is the weather in Lomaton?<|im_end|>
<|im_start|>assistant
<tool_call>{"name": "weather", "arguments": {"city": "Lomaton"}}</tool_call><|im_end|>
"""

TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

# Every line break of the text is written out, so it doesn't matter whether the engine trims the source's own.
POCKET_CHAT_TEMPLATE = """\
{%- macro turn(role, text) -%}
{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' -}}
{%- endmacro -%}
{%- set signatures = namespace(text='') -%}
{%- if tools -%}
  {%- set signatures.text = 'Tools:' -%}
  {%- for tool in tools -%}
    {%- set f = tool.function if tool.function is defined and tool.function else tool -%}
    {%- set keys = namespace(all=[]) -%}
    {%- for key, value in f.parameters.properties.items() if value -%}
      {%- set keys.all = keys.all + [key] -%}
    {%- endfor -%}
    {%- set signatures.text = signatures.text + '\\n' + f.name + '(' + keys.all | join(', ') + ')' -%}
  {%- endfor -%}
  {%- if messages[0].role == 'system' -%}
    {{- turn('system', messages[0].content + '\\n' + signatures.text) -}}
  {%- else -%}
    {{- turn('system', signatures.text) -}}
  {%- endif -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' and message.tool_calls is defined and message.tool_calls -%}
    {%- set calls = namespace(text=message.content or '') -%}
    {%- for call in message.tool_calls -%}
      {%- set f = call.function if call.function is defined and call.function else call -%}
      {%- set arguments = f.arguments if f.arguments is string else f.arguments | tojson -%}
      {%- set call_text = '{"name": "' + f.name + '", "arguments": ' + arguments + '}' -%}
      {%- set calls.text = calls.text + '<tool_call>' + call_text + '</tool_call>' -%}
    {%- endfor -%}
    {{- turn('assistant', calls.text) -}}
  {%- elif not (tools and loop.first and message.role == 'system') -%}
    {{- turn(message.role, message.content or '') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
