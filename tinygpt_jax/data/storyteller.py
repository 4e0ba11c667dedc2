"""What the built-in storyteller knows: its words, and how its stories go. `grammar.py` says how to read this.

Whatever may follow "a" begins with a consonant, so that nothing here needs an "an".
"""

# The words of each slot. A pair is (another slot, what goes with its first word; with its second; and so on).
WORDS = {
    "child": "girl, boy",
    "he": ("child", "she; he"),
    "He": ("child", "She; He"),
    "him": ("child", "her; him"),
    "his": ("child", "her; his"),
    "His": ("child", "Her; His"),
    "hero": (
        "child",
        "Lily, Mia, Anna, Lucy, Emma, Rose, Sara, Jane, Molly, Zoe, Kate, Amy, Ruby, Clara, Nora, Alice; Tom, Ben, "
        "Max, Sam, Jack, Leo, Tim, Finn, Luke, Adam, Noah, Peter, Oscar, Henry, Billy, Jake",
    ),
    "family": "mom, dad, mother, father, grandma, uncle, aunt, sister, brother, cousin, grandmother, grandfather",
    "trait": "kind, brave, clever, gentle, sweet, smart, cheerful, friendly, polite, patient, helpful, thoughtful, wise,"
    " bold, good, caring, loving, careful",
    "weather": "sunny, warm, bright, cool, rainy, quiet, lovely, fine, cloudy, clear, happy, cold, beautiful, busy",
    "look": "big, small, tiny, new, shiny, pretty, lovely, fine, nice, plain",
    "look_2": "big, small, tiny, new, shiny, pretty, lovely, fine, nice, plain",
    "color": "red, blue, green, yellow, purple, pink, white, black, brown, golden, silver, gray",
    "petal": "red, blue, yellow, purple, pink, white, golden, silver",
    "toy": "ball, doll, drum, truck, train, robot, boat, car, puppet, whistle, marble, rocket, bell, hat, sword, crown",
    "gift": "book, hat, scarf, shell, stone, feather, button, card, ring, bell, box, cup, star, pencil, brush, lantern",
    "place": "park, beach, lake, river, forest, village, hill, garden, farm, market, field, pond, school, zoo, library, "
    "playground",
    "room": "kitchen, attic, barn, shed, garage, basement, bedroom, hall, cellar, library",
    "furniture": "table, bed, sofa, chair, bench, piano, desk, shelf, stove, couch, cabinet, curtain",
    "container": "box, basket, bag, chest, trunk, crate, barrel, bucket",
    "landmark": "house, barn, fence, gate, well, wall, shed, porch, pond, bench",
    "seat": "tree, rock, log, bush, wall, fence, bench, statue, gate, fountain",
    "animal": "puppy, kitten, bunny, duck, fox, bear, mouse, frog, turtle, bird, pony, goat, pig, lamb, lion, cow",
    "coat": "white, brown, black, gray, golden, tan, striped, spotted",
    "climber": "squirrel, monkey, cat, bird, parrot, crow, bear, lizard, pigeon, robin, dove, mouse",
    "food": "sandwich, pie, cake, bun, pizza, pear, peach, banana, cookie, tart, plum, burger, potato, sausage, carrot, mango",
    "taste": "fresh, warm, sweet, big, tasty, lovely, soft, round",
    "meal": "milk, water, soup, bread, rice, cheese, honey, corn",
    "flower": "rose, tulip, daisy, poppy, lily, orchid, pansy, iris",
    "vessel": "vase, pot, jar, jug, glass, bowl, cup, mug",
    "cloth": "scarf, ribbon, sock, belt, towel, handkerchief, shirt, napkin",
    "flyer": "kite, hat, cap, scarf, balloon, ribbon, plane, flag, feather, mask",
    "skill": "swim, skate, dance, paint, sing, whistle, read, ski, cook, knit, draw, sew, bake, climb, dive, sail",
    "doing": "running, dancing, jumping, playing, skipping, hopping, racing, spinning, marching, bouncing",
    "dish": "glass, cup, plate, bowl, lamp, pot, jar, mirror, pitcher, clock, mug, jug",
    "monster": "ghost, monster, dragon, witch, giant, wolf, troll, robber, goblin, vampire, beast, snake, pirate, thief",
    "tool": "broom, lamp, torch, lantern, stick, bat, sword, shield, spoon, helmet",
    "magic": "fairy, wizard, elf, unicorn, angel, queen, king, princess, dragon, knight",
    "treasure": "castle, crown, pony, palace, ship, jewel, throne, garden, train, boat",
    "trouble": "sick, sad, hungry, weak, scared, cold, angry, tired, poor, dirty",
    "cured": ("trouble", "well; happy; full; strong; brave; warm; calm; rested; rich; clean"),
    "obstacle": "rock, stone, log, root, stick, branch, bucket, shoe, rope, bottle",
    "building": "tower, castle, fort, house, bridge, hut, cabin, palace, shed, barn",
    "flimsy": "paper, leaves, straw, sand, grass, cards, feathers, mud",
    "sturdy": "wood, bricks, stones, rocks, logs, clay, boards, metal",
    "topper": "flag, star, bell, lantern, ribbon, feather, crown, candle",
    "deep": "well, soundly, deeply, peacefully, happily, quietly, late, sweetly",
    "cozy": "soft, warm, cozy, little, big, white, blue, wooden",
    "dream": "stars, ships, horses, candy, mountains, rainbows, clouds, snow, whales, castles, flowers, birthdays, "
    "music, kings, trains, cake",
}

# A line break is a space. Each plot takes up after the opening, so it starts with what {hero} did.
OPENING = """
[Once upon a time|A long time ago|In a small town|By the blue sea|On a quiet farm|In a tall house|Near a big forest|In a green
valley|On a high hill|In a far land|Under a big tree|In a busy city], a {trait} little {child} named {hero} lived with
{his} {family}."""

LOST_TOY = """\
lost a {look} {color} {toy}.
They looked [under|behind|beside] the {furniture} and in the {room}, but it was [gone|not there|nowhere|still lost].
{hero} [began to cry|sat down and sighed|wanted to give up|felt very sad].
"[Do not worry|Cheer up|Be brave|Dry your eyes|I have a plan|Do not cry], {hero}," said the {animal}.
"[We will find it|Let us look again|It must be here|I know what to do|Come with me]."
[At last|Soon|After a while|Finally|By dinner|In the end], they [found|saw|spotted] the {toy}
[inside|behind|under|beside] a {look_2} {container}.
"[Hooray|You did it|What luck|How wonderful|Look|We did it|There it is|I am so happy]!" [said|cried|shouted|cheered]
{hero} and [hugged|thanked|danced with] the {animal}."""

QUARREL = """\
wanted the same {look} {color} {toy}.
"[It is mine|I saw it first|Let go|Give it to me|I had it first]!" [cried|shouted|yelled|called] the {animal}.
They [pulled|pushed|fought] until the {toy} [broke|cracked|fell apart|lost a piece].
Then they both felt [sad|sorry|bad|silly|ashamed].
"[I am sorry|Please forgive me|I was wrong|I was not nice]," said {hero}.
"[We can share it|Let us take turns|You can go first|It can be ours]."
They fixed the {toy} with [glue|string|tape|clay|paint|paper], took turns
[until dinner|for hours|all day|until it got dark] and shared a {taste} {food}."""

SEED = """\
found a [tiny|strange|shiny|round|little|small] seed [on the path|in the grass|near the gate|by the road].
"[What will it be|Where did it come from|What will grow from it|Is it magic]?" {he} [asked|wondered|whispered|said].
{He} planted it [behind|beside|near] the {landmark} and [watered it|sang to it|sat beside it|talked to it] every
[day|morning|evening|afternoon].
After [two|three|four|five|six|ten] [days|weeks|months], a [tall|lovely|beautiful|big|fine|tiny] {petal} {flower}
[opened|bloomed|grew up|came out].
{hero} [took|gave|brought] it to {his} {family}, who put it in a {look} {color} {vessel}.
"[Thank you|How lovely|What a surprise|It is perfect]! You are a {trait} {child}," said {his} {family}."""

LUNCH = """\
went to the {place}.
{hero} had a {taste} {food}, but the {animal} had [no lunch|nothing to eat|no food at all|forgotten to eat].
{hero} [smiled|nodded|thought for a moment|felt sorry] and [cut|broke|split] the {food} in two.
"[Please have half|This half is for you|Let us share it|Eat with me|I have enough for two]," {he} said.
They ate [slowly|happily|quietly|every crumb] [next to|beside|behind|near] a {seat}.
Then the {animal} gave {him} a {look} {color} {gift}.
"[Thank you|This is for you|You helped me|I made this], {hero}. You are a {trait} friend." """

HURT_ANIMAL = """\
heard a [soft|tiny|sad|faint|strange|little] cry [by|beside|behind|near] a {seat}.
It was a [little|small|young|lost|thin|tiny] {coat} {animal} with a hurt leg.
"[Please help me|It hurts so much|I cannot walk|I want to go home|I am so scared|I fell down],"
[said|cried|whispered|begged] the {animal}.
{hero} tied {his} {look} {color} {cloth} around the leg and gave the {animal} some {meal}.
[Soon|The next day|After a week|In no time|At last|By dinner], the {animal} could [run|jump|walk|dance|play|hop]
again.
"[Thank you|You saved me|I feel better|I am well again|You helped me], {hero}," it said. "You are a {trait}
{child}." """

KITE = """\
took {his} {look} {color} {flyer} to the {place}.
[Suddenly|Then|All at once|Just then|But soon], the wind blew it into a [tall|big|huge|great|green|dark] tree.
"[Oh no|Come back|Oh dear|Help me|Stop|Not my {flyer}]!" [cried|shouted|called|yelled] {hero}.
A [friendly|little|young|merry|kind|brown] {climber} [saw it|looked down|was watching|heard {him}].
"[Can I help|May I help|Do you need help|Is it yours|May I get it]?" it asked.
It [pulled|pushed|shook|knocked] the {flyer} [free|loose|down], and {hero} gave it
[half of|some of|all of|a bite of] {his} {taste} {food}."""

SKILL = """\
wanted to learn to {skill}.
{He} tried [once|twice|three times|many times|all day], but {he}
[could not do it|got it all wrong|made mistakes|did badly].
"[It is too hard|I will never learn|I cannot learn|I am too small|Nobody taught me] to {skill}," {he}
[sighed|cried|groaned|said].
"[Try again|Take your time|Keep trying|Be patient|Never give up], {hero}," said {his} {family}.
So {he} practiced every [day|morning|evening|afternoon] for [two|three|four|five|six|ten] [days|weeks|months].
[At last|In the end|Finally|Soon], {he} could {skill} [very well|with ease|like a star|better than anyone]!
{His} {family} gave {him} a {look} {color} {gift}. "You are a {trait} {child}." """

BROKEN = """\
was {doing} in the {room} and broke {his} {family}'s {look} {color} {dish}.
{He} hid the pieces [under|behind|beside] the {furniture}, but {he} felt [sad|bad|guilty|afraid|sick].
At [lunch|dinner|supper|bedtime], {he} [said|cried|whispered|sighed], "I broke the {dish}. I am
[very|so|truly|really] sorry."
{His} {family} [hugged|kissed|held|forgave] {him} and said,
"[Thank you for telling me|Nobody is perfect|We all make mistakes|I am not angry|We can fix it|Do not cry]. You are
a {trait} {child}."
Then they shared a {taste} {food}."""

MONSTER = """\
thought there was a {monster} in the {room}.
Something went [bump|crash|bang|thump|scratch]!
{hero} [was scared|shook with fear|wanted to run|felt cold], but {he} took {his} {look} {color} {tool} and
[opened the door|looked inside|stepped in|crept closer|went in].
"[Who is there|Is anybody there|Who are you|What do you want]?" {he} [asked|called|whispered|shouted].
Out came a [little|small|young|tiny|thin|lost] {coat} {animal} with a {taste} {food} in its mouth!
"You are not a {monster}!" laughed {hero}.
{He} gave it some {meal} and a [soft|warm|cozy|big] [blanket|pillow|bed|cushion|coat]."""

WISH = """\
met a [tiny|kind|gentle|friendly|lovely|merry] {magic} by the [lake|river|pond|well|stream|sea].
{hero} wanted a {look} {color} {treasure}, but the {animal} was {trouble}.
"[You may make one wish|I will grant you a wish|Tell me your wish|Wish for anything]," said the {magic}.
"[I wish|Please, I wish] that the {animal} would be {cured}," said {hero}.
The {magic} waved a [wooden|crystal|golden|silver|tiny|long|shiny|thin] wand, and
[stars fell|music played|bells rang|the air sparkled|birds sang].
The {animal} was {cured} at once, and {hero} got the {treasure} too."""

RACE = """\
raced to the {place}.
{hero} was [winning|ahead|in front|faster] when the {animal} tripped on a [big|wet|hidden|muddy|loose|small]
{obstacle} and hurt [a leg|one foot|a toe|its head].
{hero} [stopped|turned around|ran back|came back] at once.
"[Are you all right|Does it hurt|Can you stand up|Can you walk|Do you need help]?" {he} asked the {animal}.
{He} tied {his} {look} {color} {cloth} around it, and they walked on [side by side|together|slowly|happily].
"A friend is better than [a prize|any prize|a medal|winning]," said {hero}, and they shared a {taste} {food}."""

BUILDING = """\
built a {look} {building}.
They used {flimsy} and a lot of [time|love|care|work|string|glue].
[Then|But soon|Suddenly|All at once|Just then], a [big|strong|cold|wild] wind blew it [down|away|apart|over].
"[It is all gone|We must give up|It is no use|What a mess|Oh no]," said the {animal}, and
[began to cry|sat down sadly|wanted to go home|kicked the ground].
"[We can try again|We will do better|Do not give up|Do not be sad|Cheer up]," said {hero}. "We need {sturdy}!"
They worked [all day|for hours|until dinner|very hard], and the new {building} was [tall|big|fine|safe] and strong.
They put a {look_2} {color} {topper} on top and [danced|sang|cheered|laughed]."""

# How a story ends after a plot with a friend, one away from the family, and one at home.
FRIENDS = """
[From that day on|After that|From then on|And so|From that time on], they
[played|sang|laughed|read|danced|walked|ran|swam] together every [day|morning|afternoon|evening|week]."""

TOLD = """
[That night|At bedtime|That evening|Before bed], {he} told {his} {family}
[everything|the whole story|all about it|what happened] and dreamed of {dream}."""

SLEPT = """
That night, {hero} slept {deep} in {his} {cozy} bed and dreamed of {dream}."""

WITH_FRIEND = [
    LOST_TOY + FRIENDS,
    QUARREL + FRIENDS,
    LUNCH + FRIENDS,
    RACE + FRIENDS,
    BUILDING + FRIENDS,
    WISH + TOLD,
]
ALONE = [
    SEED + SLEPT,
    HURT_ANIMAL + TOLD,
    KITE + TOLD,
    SKILL + SLEPT,
    BROKEN + SLEPT,
    MONSTER + TOLD,
]

STORY = f"""{OPENING}
[One {{weather}} [day|morning|afternoon], {{hero}} and a {{coat}} {{animal}} [{"|".join(WITH_FRIEND)}]|On a
{{weather}} [day|morning|afternoon], {{hero}} [{"|".join(ALONE)}]]"""
STORY = " ".join(STORY.split())
