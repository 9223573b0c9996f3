"""Names, places and other neutral words, shared by all generated text."""

NAMES = """
adam agnes albert alice amber amy andrew anna arthur barbara ben bertha bianca boris brenda bruno
carl carla cecil clara colin cora craig daisy daniel david diana dora edgar edith edward elena
ella emil emma eric ethan eva felix fiona frank fred gina gloria grace greg greta hannah harold
harry hazel helen henry hilda hugo ian ida irene iris isaac ivan jack jacob jane jason jenny joan
joel john julia karen karl kate kevin laura leo lena liam lily linda lisa louis lucas lucy luke
mabel marco maria mark martha martin mary max megan mia miles mona nadia nancy nathan nick nina
nora norman olga oliver olivia oscar otto pablo pamela patrick paul paula peter philip phoebe
rachel ralph rita robert robin roger rosa rose ruby rupert ruth sam sandra sara sean simon sofia
sonia stella stephen susan sylvia ted teresa thomas tina tom ursula vera victor viola walter wanda
wendy yvonne zoe
""".split()
CITIES = """
paris london rome berlin madrid vienna oslo dublin lisbon prague boston chicago denver dallas
seattle toronto moscow cairo delhi tokyo sydney athens geneva zurich milan venice naples lyon
hamburg munich bristol oxford leeds york bath dover glasgow austin houston phoenix portland lima
havana nairobi seoul
""".split()
COLOURS = """
red blue green yellow black white brown grey pink purple orange silver golden violet
""".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = """
january february march april may june july august september october november december
""".split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
JOBS = """
teacher doctor nurse farmer baker lawyer judge pilot sailor painter writer singer dancer plumber
carpenter butcher tailor soldier gardener driver dentist barber banker miner fisherman actor
scientist engineer librarian journalist photographer mechanic clerk
""".split()
# Labels drawn at random: ordinary words without a polarity, none of them a label of a task.
LABELS = """
maple copper river table window pencil garden button ladder mirror rabbit tiger camel falcon
salmon pepper lemon carrot onion potato walnut cherry apple banana grape melon cabbage basket
bottle hammer needle bucket candle blanket carpet curtain drawer engine feather finger forest
glass hammer harbor helmet island jacket kettle lantern letter market marble meadow metal monkey
mountain napkin ocean orange oven paddle paper parrot pebble pillow planet pocket powder ribbon
rocket saddle sailor sand shadow shovel silver spoon square stone street summer sunday thunder
ticket timber tower tunnel turtle valley velvet violin wagon water whistle winter wolf yarn zebra
alpha beta gamma delta omega north south east west left right up down one two three four five six
seven eight nine ten first second third red blue green black white brown pink purple grey circle
triangle line point corner edge top bottom front back door roof wall floor brick wood iron steel
gold tin lead rope chain wheel gear pipe wire lamp clock bell drum flute horn piano cat dog horse
cow sheep goat pig duck goose hen fox bear lion deer mouse snake frog fish whale shark crab bee
ant spider worm tree leaf root branch seed grass flower rose lily moss corn wheat rice bread milk
cheese butter egg salt sugar honey tea coffee juice soup cake pie coat hat shoe sock glove scarf
shirt belt ring crown coin bag box cup plate bowl fork knife pan pot bed chair desk shelf sofa
book page pen ink map flag kite ball bat net ship boat raft train bus truck road bridge gate
fence barn farm field hill lake pond rain snow wind cloud storm sun moon star sky fire smoke ash
dust mud clay earth morning evening night monday friday march april june july a b c d x y z
accept refuse ok high low plus minus hot cold open shut
on off in out day dark light big small long short fast slow
""".split()
LABELS = list(dict.fromkeys(LABELS))
