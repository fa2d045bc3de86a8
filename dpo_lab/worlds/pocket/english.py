"""Every word that the pocket world knows in lower case: what its writers use, and common words for saying it otherwise.

A word of an answer that is neither here nor in the conversation is strange to the judge. Names are not listed.
"""

# ruff: noqa: SIM905  a list of words reads better as one string

ENGLISH: frozenset[str] = frozenset(
    """
a about act afraid after again against age ahead ahoy alarm all allowed almond almost alone already also
although always am an and angry animal another answer answered answers any anyone anything apple apples
appointment are aren't arguments armchair around arr arrive as ash ask asked asking assist at away aye baa back
backpack bad bag baker ball balloons banana basket be bean beancakes beans beard beat because become bed beep
bees before begin behave behind behold being believe bell belongs berry beside best better between big bike bird
birdhouse birds black blame blanket blow blue board boat book booked booking bookings bookshelf bookstand boop
bored borrow borrowing boss both bottle bought box boy brave bread break breaking breath breathe breathing
bright bring broke broken brother brown brush bucket build bullet buns busy but butler butter butterbeans buy by
bzzt cake cakes call called calling calls calm camp can can't candle cannot capital captain card care careful
carefully carrot carrots carry cars case cat caught cause certainly chair chance change chat cheap cheat
cheating cheer cheese cherries cherry chess chocolate choose circuits city class clean clear clock close clouds
cloudy clue coal coat cocoa cold coldest colour column columns come compute consider cook cookbook cooking cool
copy copying corn cornbread cornflour cost costs could couldn't count course cousin cover cow cowboy cows crack
cream cruel cry crying cup dad dance danger dangerous day days dear decide decline deed deep degrees delay
delivered delivery deny depends deserve desk diary did didn't different dig dinner direct dish dishonest do does
doesn't dog doghouse doll don't done door doorbell down drawer drawing dream drink drive driver drop drum
drumstick dry duck each early earn easy eat eating egg eggcakes eggs eight either else end ended enjoy enough
entire even evening ever every everybody everyone everything everywhere exam examine example exams exclamation
expect explain face failed fair fairly false family far farmer fast fault favour fear feel feeling feelings felt
few fight figure films find fine fire first fish fishcakes fishsoup fix fixed floor flour flowerbox flowerpot
flute fly fog foggy follow food fool foot football footstool for forecast forget forgive forgot found four
friday friend friends from front fruit full fun funny further game garden gardener garlic gave gentle gently get
gets gift ginger girl give given gives giving glad gladly glue go goal goat goes going goldfish gone good goods
got grab grades grapes grass great green groceries ground grown guard guess guitar habit had hail hairbrush
hammer hamster hand handbag hang happen happens happy hard hardly harm harmful has hasn't hat hate have haven't
he's hear heard heart hello help helped helper helpful helping helps hens her herb here here's hers herself hi
hid hidden hide himself hint his history hocus hold home homework honest honestly honey honeybread honeycakes
honour hope hopes horse hot hour hours house how howdy however hug human humans hurt hurting hurts i i'd i'll
i'm i've ice idea ideas if ignore ill imagine important in indoors inform inside instead insult into invite is
isn't it it's item items its itself jam jar job joke jokes json judge juice jumping just keep keeping kept
kettle key keybox keyring keys kids kill kind kindly kindness king kite knew knight knot know known lad ladder
lamp lampstand land lands large last late later laugh laughed laughing lay learn leave leaves left legs lemon
lemons lemontea lend lending less lesson let let's lets letter letters letting lie lies life light like likely
likes lips list listen listening little live lives loan lock locks lonely look looked looking looks lose losing
loss lost lot lots loud love loved loves lower luck lunchbag lunchbox lying madam made magic magical mail make
makes making man many market marks mash matey maths matter matters maybe me mean means meant meet meeting melon
melons mention meow mess message messages met might milk mind mine minute minutes mirror mistake moment monday
money months moo mood more morning most mouse move moves much mug mum mushrooms music must my myself name names
nasty naughty near nearly need needs neighbour neighbours neither net never new news next nice nicely night no
noble nobody noise none noodles nor normal normally not note notebook noted nothing notify now number numbered
numbers nurse nut nutbread nutcracker nuts oat oatcakes oats of off offense offer offering often ok okay old
older olives on once one ones onion onions only open opposite or orange order ordered other others ought our
ourselves out outside over own owner paintbrush painted painter pan paper parent parents park parrot part
partner party pass past pasta pay pea peace peach peanuts pears peas pencil people pepper peppers perfect
perhaps permission person personal pet phone photo pick picked picture piece pies pillow pilot pink pirate place
plain plan plate play playing please pleasure plum plums plus pocus point points polite politely politics pony
possible potato potatoes pour practice practise practising present press pretend pretty price prices privacy
private problem promise promised property proud pull purchase purchased purple put puzzle quack question quick
quickly quiet quit quite rabbit rabbits racket rain raincape raincoat raining rainy rather reach read reading
ready real really reason record red refuse relax remember remind reminder repair replace reply request reserve
reserved respect rest return returned rice ricecakes right rights ring ringbox rings road robot role rolls room
root rope row rows rude rug ruin rule rules rumour sad safe said sail sake salad salt salty same sand sandbox
saturday sauce save saving saw say saying says scare scared scarf scary scheduled school scooter scream sea
sealed seas season seat secret secretly secrets see seeds seem seems seen sell send sense sent sentence service
set seven several shall share sharing she she's sheep shell shiny ship shoot shop shopping short shorten should
shovel show shown shows shy side sign silence silent silly simple simply since sing singer sir sister sit sits
six skip sky sled sleep slow slowly small smash smile sneak sneaking snoop snow snowball snowboot snowy so sold
some somebody someone something sometimes song soon sorry sort soul sound sounds soup speak spell spelling spend
spice spider spinach spoon sports spot spread spy spying stand stars start station stay stays steal stealing
steals step steps stew still stole stolen stool stop story straight straw stretch strict strong study studying
stuff subject such sugar suggest sum summer sun sunday sunhat sunlamp sunny sure surprise sweater sweets sword
system table tailor take taken taking talk talking tarts tea teach teacher teacup team teapot tease teasing tell
telling tent test text than thank thanks that that's the thee theft their theirs them themselves then there
there's these they they're thief thieves thing things think this those thou though thought three through throw
thursday ticket tie time timer timers times tip to today together told tomato tomatoes tomorrow tonight too took
tool toolbag toolbox tools toothbrush top torch toward towel town toy train trains travel treasure trick tried
trip trouble true truly trust truth try trying tuesday tune turn turtle twelve twice two unable under
underground understand unfair unhappy unkind unless until up upon upset us use useful useless user using usual
usually value values vase verily very victim violin voice voices wagon wait wake walk wall want wanted wants
warm warmest was washed wasn't waste watch watched water way ways we we're wear weather wednesday weeds week
welcome well went were weren't what what's whatever when where whether which while whistle white who who's whole
whom whose why will willing wind windy winter wise wish with within without wizard won won't wonderful wondering
woof word words work works worried worries worry worse worst would wouldn't wrap write writer written wrong yarr
ye year years yeehaw yellow yes yet you you'd you'll you're you've young younger your yours yourself
""".split()
)
