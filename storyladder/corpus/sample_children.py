"Stage 2 of the sample corpus: longer tales with places, feelings and a journey. Tables only; see `sample_stories.py`."

from storyladder.corpus.sample_words import Plot, Register

_PLOTS = (
    Plot(
        name="the lighthouse has gone dark",
        words={
            "setting": "[a fishing village at the edge of the gray sea|a village of white houses above the harbor]",
            "habit": "[counted the boats every evening|knew the name of every boat in the harbor]",
            "trait": "[brave|thoughtful|stubborn|watchful]",
            "weather": "stormy",
        },
        cases=(
            {
                "helper": "[gull|owl]",
                "light": "a lantern full of [stars|moonlight]",
                "fix": "flew ahead through the rain and showed {him} every step of the slippery stairs",
            },
            {
                "helper": "lighthouse keeper",
                "light": "the last jar of lamp oil",
                "fix": "told {him} where the spare key was hidden, under the third blue stone",
            },
            {
                "helper": "firefly",
                "light": "a hundred fireflies",
                "fix": "called all {friend.his} cousins out of the warm grass",
            },
        ),
        trouble=(
            (
                "{When}, {hero} looked out of the window and felt cold all over. The lighthouse was dark! Far out on "
                "the waves the last boats were coming home, and without the light they would never find the harbor."
            ),
            (
                "{When}, the great lamp of the lighthouse went out. The wind howled like a wolf, the sea was black, "
                "and somewhere in that darkness were the fishing boats with all the people whom {hero} knew."
            ),
        ),
        attempt=(
            (
                "{Hero} pulled on {his} boots and ran along the wall of the harbor. Twice the waves nearly knocked "
                "{him} down. When {he} reached the lighthouse, the big door was locked, and no one answered {his} "
                "knocking."
            ),
            (
                '"Somebody must do something," said {hero}, and then {he} understood that somebody was {him}. {He} '
                "climbed over the wet rocks with {his} heart beating like a drum, but at the top of the rocks {he} "
                "did not know how to go on."
            ),
        ),
        turn=(
            (
                'There, out of the rain, came {friend}. "You should not be out here alone," said {friend}, "but I am '
                'very glad that you are." Then {friend} {fix}. Together they carried {light} up the winding stairs.'
            ),
            (
                'Under the stairs sat {friend}, wet and worried. "I thought nobody would come," said {friend}. "I '
                'came," said {hero}. So {friend} {fix}, and up they went with {light}, round and round and round.'
            ),
        ),
        ending=(
            (
                "All at once the lamp shone out, golden and steady, across the water. One by one the boats turned "
                "toward it, and one by one they came safely home. In the morning the whole village came to thank "
                "{hero} and {friend}."
            ),
            (
                "When the lamp began to burn, a path of gold lay on the sea. {Hero} counted the boats as they came "
                "in. [Seven, eight, nine|Ten, eleven, twelve|Five, six, seven]! Not a single one was missing, and "
                "everyone on the shore cheered for {hero} and {friend}."
            ),
        ),
        lesson=(
            "Since that night, {hero} has known that courage does not mean having no fear.",
            "And if you pass that way in the evening, you may see the two of them at the top, keeping the light.",
        ),
    ),
    Plot(
        name="the bell that lost its voice",
        words={
            "setting": "[a mountain village with a tall stone tower|a little town in the green hills]",
            "habit": "[woke up each morning to the song of the silver bell|loved the silver bell more than anything]",
            "weather": "[quiet|foggy]",
        },
        cases=(
            {
                "helper": "[mouse|sparrow|bat]",
                "cause": "a nest full of tiny sleeping chicks",
                "wait": "wait until the little ones can fly",
            },
            {
                "helper": "bell ringer",
                "cause": "a swarm of bees that had made its home there",
                "wait": "build the bees a new house in the orchard",
            },
            {
                "helper": "[owl|bat]",
                "cause": "a scarf that somebody had tied there on a cold winter day",
                "wait": "take the scarf down and see who needs it",
            },
        ),
        trouble=(
            (
                "{When}, the silver bell did not ring. The rope moved up and down, but there was no sound at all. The "
                "[bakers burned their bread|cooks burned the soup], the children were late for school, and the "
                "[roosters|pigeons] were terribly confused."
            ),
            (
                "{When}, something was wrong. The rope was pulled, the wheel turned, and the silver bell said "
                "nothing. Without its song the whole place felt like a house without a fire."
            ),
        ),
        attempt=(
            (
                "Some said that the bell was angry, and some said that it was tired. {Hero} listened to all of them. "
                "Then {he} put {a item} into {his} pocket and began to climb the two hundred steps of the tower."
            ),
            (
                '"Has anyone gone up to ask the bell?" said {hero}. Nobody had. So {he} took {a item} and climbed the '
                "tower all alone, past cobwebs and dusty windows, until {his} legs shook."
            ),
        ),
        turn=(
            (
                'At the top sat {friend}. "Hush," whispered {friend}, and pointed into the bell. {Hero} held {his} '
                'breath and looked. Inside it was {cause}! "The bell has not lost its voice," said {friend}. "It is '
                'only keeping a secret."'
            ),
            (
                'High up under the roof {he} met {friend}, who was guarding the bell. "Look inside, but look gently," '
                "said {friend}. And there, where the bell should swing, was {cause}."
            ),
        ),
        ending=(
            (
                '"Then we must {wait}," said {hero}. {He} told everyone in the square, and everyone agreed to help. '
                "When the bell rang out at last, it sounded sweeter than before, and {hero} and {friend} danced on "
                "the tower."
            ),
            (
                "{Hero} ran down all the steps again and told the people what {he} had seen. They decided to {wait}. "
                "Not many days later the silver bell was singing over the roofs, and {hero} and {friend} laughed out "
                "loud."
            ),
        ),
        lesson=(
            "Sometimes a silence has a good reason, if you are willing to climb up and see.",
            "People still say that the bell rings a little softer whenever {hero} walks by, just to say hello.",
        ),
    ),
    Plot(
        name="grandmother's map",
        words={
            "setting": "[a crooked house full of books|an old house with a creaking attic]",
            "habit": "[dreamed of adventures in far places|had read every book on the shelf, twice]",
            "mark": "[a golden star|a tiny red heart|a smiling moon|a blue feather]",
            "weather": "rainy",
        },
        cases=(
            {"helper": "[mole|badger]", "skill": "could dig faster than anyone in the valley"},
            {"helper": "[crow|raven]", "skill": "could see the land from above, as if it were a map itself"},
            {"helper": "[frog|turtle]", "skill": "knew every stream and every stepping stone"},
            {"helper": "grandparent", "skill": "had walked these paths when {friend.he} was young"},
        ),
        trouble=(
            (
                "{When}, {hero} found an old map at the bottom of a chest. It showed the hills, the stream and the "
                "forest, and in the middle of the forest somebody had painted {mark}. Under it was written, in curly "
                "letters, the word treasure."
            ),
            (
                "{When}, a piece of paper fell out of a dusty book. It was a map! In one corner was {mark}, and "
                'beside it were the words, "For the one who is not afraid to look."'
            ),
        ),
        attempt=(
            (
                "{Hero} packed {a item} and {a food} and set out at once. {Walk}. But in the forest all the paths "
                "looked the same, and soon {he} had walked in a circle three times."
            ),
            (
                "{He} could hardly sleep. As soon as the sun was up, {he} took {a food} and followed the map. {Walk}. "
                "Then the path simply stopped, and {hero} did not know where to turn."
            ),
        ),
        turn=(
            (
                'On a fallen tree sat {friend}, who {skill}. "Are you lost?" asked {friend}. "Only a little," said '
                "{hero}, and broke the {food} in two. When they had eaten, they looked at the map together, and "
                "suddenly it all made sense."
            ),
            (
                "Just then {hero} met {friend}, who {skill}. {Hero} shared the {food}, and in return {friend} studied "
                'the map. "You are holding it upside down," said {friend} kindly.'
            ),
        ),
        ending=(
            (
                "Under a great oak tree they found a wooden box with {mark} on the lid. There was no gold in it. It "
                "was full of [letters, stories and pressed flowers|old photographs and funny drawings|recipes, songs "
                "and secret codes], and on top lay an empty book with {hero}'s own name on the first page."
            ),
            (
                "Behind a curtain of ivy was a little door with {mark} on it, and behind the door was a secret "
                "garden. There were [pear|apple|cherry|plum] trees, a swing, and a bench for two. {Hero} and {friend} "
                "sat down and listened to the birds."
            ),
        ),
        lesson=(
            '"This is better than gold," said {hero}, and {friend} thought so too.',
            "From then on the two of them met there every week, and that was the real treasure.",
        ),
    ),
    Plot(
        name="the river that stopped",
        without=("beaver", "otter"),
        words={
            "setting": "[a green valley with a singing river|a village with a water mill]",
            "habit": "[sailed little boats made of bark|listened to the river every night before sleeping]",
            "weather": "[hot|dry]",
        },
        cases=(
            {
                "helper": "beaver",
                "cause": "a dam, built a little too well",
                "fix": "opened a gate in the middle, just wide enough for the water and for the fish",
            },
            {
                "helper": "[goat|badger]",
                "cause": "a great round stone that had rolled down the mountain",
                "fix": "pushed while {hero} pushed, and the stone began to tremble and then to roll",
            },
            {
                "helper": "giant",
                "cause": "a pair of enormous feet, right across the river",
                "fix": "blushed, said sorry, and pulled {friend.his} feet out of the river",
            },
        ),
        trouble=(
            (
                "{When}, the river was gone. There was only mud where the water had been, and a few puddles with "
                "worried fish in them. The gardens turned brown, [the ducks looked puzzled|the frogs stopped "
                "singing], and the wheel of the mill stood still."
            ),
            (
                "{When}, {hero} woke up because it was too quiet. The river had stopped singing! There was hardly "
                "enough water left to fill a cup, and everybody in the valley was thirsty."
            ),
        ),
        attempt=(
            (
                "First {hero} carried the fish to the deepest puddle. Then {he} followed the dry river up into the "
                "hills. {Walk}. The sun burned, and {his} feet hurt, but {he} did not turn around."
            ),
            (
                '"A river does not get lost," said {hero}. "It must be waiting somewhere." So {he} took [{his} hat|a '
                "stick|an empty bucket] and walked up the river bed, over the smooth stones, all day long."
            ),
        ),
        turn=(
            (
                'High in the hills {he} found {cause}. And there was {friend}, who looked very sorry. "I never meant '
                'any harm," said {friend}. "Then let us mend it together," said {hero}. {Friend} {fix}.'
            ),
            (
                "Around the last bend {he} saw what was wrong. It was {cause}. {Hero} was a little afraid, but {he} "
                'bowed politely to {friend}. "Please," {he} said, "our valley is thirsty." {Friend} listened, and '
                "then {friend.he} {fix}."
            ),
        ),
        ending=(
            (
                "With a roar and a rush the river came back to life. {Hero} raced it all the way down the valley and "
                "lost, laughing. The fish jumped, the mill wheel turned, and that evening {friend} was the guest of "
                "honor."
            ),
            (
                "First it was a trickle, then a stream, and then a real, shining river. When {hero} and {friend} came "
                "down to the valley, people were [dancing in the water with their shoes on|already splashing each "
                "other like children]."
            ),
        ),
        lesson=(
            "And at night, when all was still, the river sang {hero} to sleep again.",
            "A kind word had done what no shouting could do.",
        ),
    ),
    Plot(
        name="the dragon with a cold",
        words={
            "setting": "[a town below a smoking mountain|a village at the foot of the dragon hills]",
            "habit": "[brought soup to anyone who was ill|asked questions from morning to night]",
            "friend_trait": "[huge green|rather small red|sad blue|very old golden]",
            "cure": "[hot onion soup|honey tea|ginger tea|lemon tea|peppermint soup]",
            "weather": "[gray|windy]",
        },
        cases=({"helper": "dragon"},),
        trouble=(
            (
                "{When}, the whole town shook. [Boom|Crash|Bang]! A cloud of black smoke rose from the mountain. "
                "Everyone ran indoors and locked the shutters. {Hero} was the only one who noticed that it had "
                "sounded very much like a sneeze."
            ),
            (
                "{When}, sparks rained down on the roofs, and the people filled their buckets with water. The dragon "
                "must be furious, they said. But {hero} listened closely. Between the booms {he} could hear somebody "
                "sniffing."
            ),
        ),
        attempt=(
            (
                "So {he} cooked a big pot of {cure} and set off up the mountain. {Walk}. The higher {he} climbed, the "
                "hotter the ground became, and more than once {he} nearly turned back."
            ),
            (
                "Nobody else wanted to go. {Hero} wrapped {a blanket} around the pot of {cure}, took a deep breath, "
                "and climbed the stony path to the cave, one step and then another."
            ),
        ),
        turn=(
            (
                'In the cave lay {friend}, with a red nose and watery eyes. "Go away," said {friend}. "I might burn '
                'you by... by... achoo!" {Hero} jumped aside just in time. "Bless you," {he} said, and held out the '
                "{cure}."
            ),
            (
                'Deep in the cave {he} found {friend}. "Are you not afraid of me?" asked {friend}, and sneezed a '
                'little fire. "I am," said {hero}. "But a cold is a cold, and nobody should have one alone." And {he} '
                "gave {friend.him} the {cure}."
            ),
        ),
        ending=(
            (
                "{Friend} drank it all in one gulp and slept for two days. When {friend.he} woke up, the sneezing was "
                "over. To say thank you, {friend} flew down and lit every [stove|lantern|fireplace] in the town with "
                "one gentle breath."
            ),
            (
                "By evening {friend} felt better, and {hero} told {friend.him} stories until the stars came out. The "
                "next winter, whenever it was cold, {friend} came to town and warmed the square, and the children "
                "roasted [apples|chestnuts|potatoes]."
            ),
        ),
        lesson=(
            "Since then nobody has run away from a sneeze.",
            "It is hard to be afraid of somebody whose nose you have wiped.",
        ),
    ),
    Plot(
        name="the star that fell",
        words={
            "setting": (
                "[a farmhouse on a wide and windy plain|a cottage at the edge of the forest|a hut on the hillside]"
            ),
            "habit": "[said good night to the stars, one by one|could not sleep without looking at the sky]",
            "weather": "clear",
            "star": "[warm as a fresh egg|as light as a feather|no bigger than a plum]",
        },
        cases=(
            {
                "helper": "[owl|heron]",
                "way": "carried it up on broad and silent wings",
                "place": "the bare hill where the wind begins",
            },
            {
                "helper": "[spider|caterpillar]",
                "way": "spun a silver thread that reached all the way to the moon",
                "place": "the tallest pine in the forest",
            },
            {
                "helper": "[goat|snow fox]",
                "way": "carried it up the secret stairs in the rock, to where the sky is close",
                "place": "the highest mountain",
            },
        ),
        trouble=(
            (
                "{Night}, something bright fell from the sky and landed softly in the grass. It was a star, {star}, "
                'and it was crying. "I slipped," it said. "I only leaned over to see the world, and I slipped."'
            ),
            (
                "{Night}, {hero} saw a light in the well. {He} let down the bucket, and up came a little star, "
                '{star}, dripping and afraid. "Please," it said, "I want to go home before the sun comes up."'
            ),
        ),
        attempt=(
            (
                "{Hero} wrapped the star in {a blanket} and carried it to {place}. {Walk}. There {he} threw the star "
                "up as high as {he} could, but each time it tumbled back into {his} {hands}."
            ),
            (
                "{Hero} thought hard. Then {he} put the star into {his} pocket, where it glowed through the cloth, "
                "and walked to {place}. {He} stretched and stretched, but the sky was still too far away."
            ),
        ),
        turn=(
            (
                'A voice spoke out of the dark. It belonged to {friend}. "I have seen many stars fall," said '
                '{friend}, "but I have never seen anyone carry one back." And {friend} {way}.'
            ),
            (
                'Then {he} noticed {friend}, who had been watching quietly. "You have done your part," said {friend}. '
                '"Now let me do mine." And {friend} {way}.'
            ),
        ),
        ending=(
            (
                "Just before the sun rose, the star was back in its place. It twinkled three times, once for {hero}, "
                "once for {friend}, and once for joy."
            ),
            (
                "When {hero} looked up, the gap in the sky was gone. The little star shone there again, brighter than "
                "all the rest, and it seemed to wave."
            ),
        ),
        lesson=(
            "Ever since, when {hero} says good night to the stars, one of them answers.",
            "On dark nights it still lights the path to {hero}'s door.",
        ),
    ),
    Plot(
        name="medicine through the snow",
        words={
            "setting": "[a village deep in the snowy mountains|a small town where the winters are long]",
            "habit": "[could never say no when somebody needed help|never gave up, no matter what]",
            "weather": "[bitter cold|snowy]",
            "medicine": "[bottle of brown syrup|jar of mountain honey|bag of healing herbs]",
            "sick": "[the old schoolmaster|the miller's little child|the woodcutter's baby|old Aunt Petra]",
        },
        cases=(
            {"helper": "[reindeer|moose]", "fix": "broke a path through the snow with {friend.his} wide chest"},
            {"helper": "[snow fox|wolf]", "fix": "found the buried road with {friend.his} clever nose"},
            {
                "helper": "[snow owl|raven]",
                "fix": "flew from tree to tree and called, so that {he} could follow the voice",
            },
        ),
        trouble=(
            (
                "{When}, word came that {sick} was ill on the far side of the mountain. {A medicine} would help, but "
                "the snow was so deep that no cart and no horse could pass."
            ),
            (
                '{When}, the doctor held up {a medicine} and sighed. "{Sick} needs this before night. But I am too '
                'old to cross the mountain." Everybody looked at the floor, except {hero}.'
            ),
        ),
        attempt=(
            (
                '"I will go," said {hero}. {He} tied the medicine under {his} coat and stepped out into the white. '
                "The wind bit {his} ears, and the snow came up to {his} knees. Halfway up the mountain {he} could no "
                "longer see the road."
            ),
            (
                "{Hero} packed {a food}, wrapped {himself} in {a blanket}, and set off. At first {he} sang to keep up "
                "{his} courage. But the snow fell thicker and thicker, and soon every direction looked the same."
            ),
        ),
        turn=(
            (
                'Then two bright eyes looked at {him}. It was {friend}. "Nobody walks here in a storm," said '
                '{friend}, "unless it is for someone else." So {friend} {fix}, and step by step they went on together.'
            ),
            (
                '"Who is out in my storm?" asked a deep voice, and out of the snow came {friend}. When {friend} heard '
                "about {sick}, {friend.he} asked no more. {Friend} {fix}."
            ),
        ),
        ending=(
            (
                "They reached the door just as the first star came out. By morning the fever was gone, and {hero} "
                "woke up beside the stove with a bowl of hot [soup|porridge] in front of {him}. There was a second "
                "bowl for {friend}."
            ),
            (
                "When the door opened, warm light fell on the snow. The medicine had come in time! {Hero} and "
                "{friend} were given the best seats by the fire, and all night the wind could not find them."
            ),
        ),
        lesson=(
            "And that is how a small traveler crossed a big mountain.",
            "When spring came, the people named the path after both of them.",
        ),
    ),
    Plot(
        name="the locked garden",
        words={
            "setting": "[a gray town where nothing grew|a city of stone streets and tall chimneys]",
            "habit": "[collected every green leaf that the wind brought|had always wished for a garden]",
            "weather": "[gray|cool]",
            "bloom": "[roses|tulips|sunflowers|poppies|bluebells]",
        },
        cases=(
            {
                "helper": "[robin|blackbird]",
                "key": "in an empty nest",
                "clue": "sang the same three notes over an old nest",
            },
            {
                "helper": "[mole|mouse]",
                "key": "under the third stone of the path",
                "clue": "tapped on the stones one by one",
            },
            {
                "helper": "gardener",
                "key": "on a nail behind the rain barrel",
                "clue": "scratched {friend.his} head and tried to remember",
            },
            {
                "helper": "[snail|toad]",
                "key": "inside the old watering can",
                "clue": "looked at the watering can and smiled a slow smile",
            },
        ),
        trouble=(
            (
                "{When}, {hero} found a door in a long wall, almost hidden by ivy. Through the keyhole {he} saw dry "
                "beds, a broken fountain and a bench covered with leaves. Once it must have been a garden. But the "
                "door was locked, and no one knew where the key had gone."
            ),
            (
                "{When}, {hero} followed a yellow leaf down a narrow lane, and it blew under a little green door. "
                '"There is a garden behind it," people said, "but the key has been lost for a hundred years."'
            ),
        ),
        attempt=(
            (
                "{Hero} tried {a item}, but the lock did not turn. {He} asked in every house on the street. There "
                "were keys for [cellars, for clocks and for treasure chests|barns, for bread boxes and for diaries], "
                "but none of them fit."
            ),
            (
                "Every day {he} came back and pushed against the door, and every day it stayed shut. Still, {hero} "
                "could not stop thinking of the thirsty beds behind it."
            ),
        ),
        turn=(
            (
                'Then {he} met {friend}. "Why do you want to go in?" asked {friend}. "Because it must be lonely in '
                'there," said {hero}. At that, {friend} {clue}. And there, {key}, was a rusty little key!'
            ),
            (
                "While {he} was sitting by the wall, {friend} came along. {Hero} shared {a food} and told "
                '{friend.him} everything. {Friend} {clue}. "Could it be?" whispered {hero}. It was! The key had been '
                "{key} all the time."
            ),
        ),
        ending=(
            (
                "The door opened with a groan. All spring {hero} and {friend} dug, watered and hummed. In summer the "
                "first {bloom} opened, and then a hundred more, and the people of the town stopped to smell them and "
                "forgot to hurry."
            ),
            (
                "It took weeks to clear the paths and mend the fountain, but {hero} and {friend} worked side by side. "
                "When the {bloom} began to bloom, they took the door off its hinges, so that it could never be locked "
                "again."
            ),
        ),
        lesson=(
            "If you care for something, it wakes up.",
            "And on the bench there is always room for one more.",
        ),
    ),
    Plot(
        name="the great boat race",
        words={
            "setting": "[a harbor town with a hundred colored boats|a village on the shore of a long lake]",
            "habit": "[had built a small boat out of old boards|wanted to win the summer race just once]",
            "boat": "[the Little Duck|the Brave Button|the Blue Pea|the Good Hope|the Silver Spoon]",
            "weather": "bright",
            "helper": "playmate",
            "friend_trait": "[proud|loud|boastful]",
        },
        trouble=(
            (
                "{When}, the whole shore was full of [flags|music|people], because it was the day of the race. {Hero} "
                'had named {his} boat {boat}. "That is not a boat, that is a [bathtub|soup bowl|shoe]!" laughed '
                "{friend}, whose own boat was big and fast and painted gold."
            ),
            (
                "{When}, the boats lined up for the great race. {Hero}'s boat was called {boat}, and it leaked a "
                'little. Next to it lay the golden ship of {friend}. "I will wave to you from the finish," said '
                "{friend}."
            ),
        ),
        attempt=(
            (
                "The horn blew, and off they went. {Boat} was slow, but {hero} knew the wind, and {he} passed one "
                "boat after another. Soon only {friend} was ahead. Then black clouds rolled over the hills."
            ),
            (
                "{Hero} pulled the ropes with all {his} strength. {Boat} hopped over the waves like a [frog|rabbit|"
                "happy goat]. Behind the island {he} was already second. But suddenly the wind turned wild, and the "
                "water grew dark."
            ),
        ),
        turn=(
            (
                "With a loud crack the golden mast broke, and {friend} called for help. {Hero} saw the finish line, "
                "so close, and {he} saw {friend} clinging to the ship. {He} did not need to think. {He} turned {boat} "
                "around."
            ),
            (
                "A wave hit the golden ship and tipped it over. The other boats were far away. {Hero} could have won "
                "then. Instead {he} turned the sail, threw a rope to {friend}, and pulled {friend.him} on board."
            ),
        ),
        ending=(
            (
                "They came in last of all, soaked and shivering, with two in a boat that was made for one. And yet "
                'the people cheered louder than for the winner. "I was wrong about {boat}," said {friend}. "And about '
                'you."'
            ),
            (
                "{Boat} crossed the line when the prizes were already gone. Then {friend} stood up in front of "
                'everyone and said, "The best sailor here did not win today." And all the flags were waved for {hero}.'
            ),
        ),
        lesson=(
            "The next summer they built a boat together, and it hardly leaked at all.",
            "There are things that are better than being first.",
        ),
    ),
    Plot(
        name="the giant who cried",
        words={
            "setting": "[a village between three round hills|a quiet valley full of sheep]",
            "habit": "[was never satisfied until {he} knew the reason for a thing|could not bear to hear anyone cry]",
            "weather": "[strange|wet]",
            "trait": "[small but fearless|curious|gentle]",
            "friend_trait": "[huge|lonely]",
            "toy": "[wooden spoon|brass button|red mitten|silver thimble|little music box]",
        },
        cases=(
            {"helper": "giant", "place": "stuck between two rocks in the stream", "why": "my {hands} are too big"},
            {"helper": "giant", "place": "at the bottom of a rabbit hole", "why": "my arm is too thick"},
            {"helper": "giant", "place": "under the roots of a thorn bush", "why": "my fingers are too clumsy"},
        ),
        trouble=(
            (
                "{When}, salty rain began to fall, although there was not a cloud in the sky. It filled the wells and "
                "made the soup taste terrible. Far away, behind the hills, somebody was crying, somebody very big."
            ),
            (
                "{When}, a warm flood ran down the lane, and the sheep had to climb onto the roofs. {Hero} tasted a "
                'drop of it. "These are tears," {he} said.'
            ),
        ),
        attempt=(
            (
                "The grown-ups wanted to build a wall. But {hero} thought that a wall never made anyone stop crying. "
                "So {he} took {a food} and {a umbrella} and walked toward the sound. {Walk}."
            ),
            (
                '"We must send an army," said some. "We must move away," said others. {Hero} said nothing. {He} put '
                "{a food} into {his} bag and climbed over the hills, where the crying grew louder with every step."
            ),
        ),
        turn=(
            (
                'On the other side sat {friend}, who was as tall as a church. "What happened?" shouted {hero}. "I '
                'lost my {toy}," sobbed {friend}. "My mother gave it to me. I can see it, but I cannot reach it."'
            ),
            (
                "{Friend} was sitting in the grass, with {friend.his} face in {friend.his} hands. {Hero} offered "
                '{friend.him} the {food}, which was no more than a crumb to a giant. "You are kind," sniffed '
                '{friend}. "I lost my {toy}, and it is all I have from home."'
            ),
        ),
        ending=(
            (
                "The {toy} was {place}. For {hero} it was easy. {He} reached in and pulled it out. {Friend} laughed "
                "so loudly that every cloud fell off the sky, and then {friend.he} carried {him} home on one finger."
            ),
            (
                "{Hero} looked everywhere and found the {toy} {place}. It took {him} only a moment to get it. "
                "{Friend} held it to {friend.his} heart and smiled for the first time in a week, and the sun came out."
            ),
        ),
        lesson=(
            "Now the giant comes to tea on Sundays and sits outside, because of the roof.",
            "Even the biggest sorrow can have a very small cure.",
        ),
    ),
    Plot(
        name="the troll who asked riddles",
        words={
            "setting": "[a village on one side of a deep, green river|a market town beside a wild river]",
            "habit": "[loved riddles and hated long ways around|walked to market every week with a basket of eggs]",
            "helper": "troll",
            "friend_trait": "[grumpy|mossy|gray old]",
            "weather": "[fresh|foggy]",
        },
        cases=(
            {"riddle": "What has a neck but no head", "answer": "A bottle"},
            {"riddle": "What has teeth but never bites", "answer": "A comb"},
            {"riddle": "What gets wetter the more it dries", "answer": "A towel"},
            {"riddle": "What can you catch but never throw", "answer": "A cold"},
            {"riddle": "What runs all day but never gets tired", "answer": "The river"},
            {"riddle": "What has hands but cannot clap", "answer": "A clock"},
        ),
        trouble=(
            (
                '{When}, {hero} came to the bridge and found {friend} sitting in the middle of it. "Nobody crosses," '
                'said {friend}, "who cannot answer me. {Riddle}?"'
            ),
            (
                '{When}, a new sign stood at the bridge. No crossing, it said. Under the sign sat {friend}. "First '
                'you must guess," said {friend}. "{Riddle}?"'
            ),
        ),
        attempt=(
            (
                '"A [snake|broom|fish]?" said {hero}. "Wrong," said {friend}. "A [cloud|ladder|teapot]?" said {hero}. '
                '"Wrong again." Behind {him} waited a farmer with [ten geese|seven goats|one enormous pig] and a very '
                "impatient [cook|dentist|piano tuner], and they all began to grumble."
            ),
            (
                "{Hero} sat down to think. {He} thought until {his} tea was cold. All around {him} people shouted at "
                "{friend} to get out of the way, and {friend} only pulled {friend.his} hat lower over {friend.his} "
                "face."
            ),
        ),
        turn=(
            (
                'Suddenly {hero} laughed. "{Answer}!" {he} called. {Friend} looked up, and {friend.his} eyes were '
                'bright. "Right! Oh, that was fun," said {friend}. "Must you really go now?" And then {hero} '
                "understood."
            ),
            (
                '"{Answer}!" said {hero} at last. "Yes!" cried {friend}, and clapped. Then {friend.his} smile went '
                'away. "I suppose you will leave now. They always leave." {Hero} looked at {friend.him} for a long '
                "time."
            ),
        ),
        ending=(
            (
                '"You do not want to stop anyone," said {hero}. "You want somebody to talk to." {Friend} turned red '
                "under the moss. So {hero} stayed for {a food} and [nine|five|twelve] more riddles, and the bridge "
                "was open from that hour."
            ),
            (
                '"You could just ask people to stay a little," said {hero} gently, and {he} put down {his} basket. '
                "They shared {a food}. The next day there was a new sign at the bridge. Tea and riddles, it said, all "
                "welcome."
            ),
        ),
        lesson=(
            "Often the one who blocks the way is only lonely.",
            "To this day, people take the long way around just to cross that bridge.",
        ),
    ),
    Plot(
        name="afraid to sing",
        words={
            "setting": "[a town that loved music|a forest village where everybody sang]",
            "habit": "[sang beautifully, but only when nobody was listening|hummed all day, very softly]",
            "trait": "[shy|quiet|dreamy]",
            "weather": "[golden|warm]",
            "spot": "[behind the old mill|under the stone bridge|in the empty barn]",
        },
        cases=(
            {"helper": "music teacher", "tip": "Sing to one friend, and the rest will hear it too"},
            {"helper": "[frog|cricket|nightingale]", "tip": "Close your eyes and sing to the moon, as I do"},
            {"helper": "grandparent", "tip": "Being afraid only means that it matters to you"},
        ),
        trouble=(
            (
                "{When}, a poster was hung up in the square. There would be a festival, and anyone could sing! {Hero} "
                "wanted it so much that it hurt. But when {he} imagined all those faces, {his} throat closed up like "
                "a purse."
            ),
            (
                "{When}, the summer festival was only three days away. Everyone had a song but {hero}. That is, "
                "{hero} did have one, the loveliest of all. {He} just did not dare to sing it aloud."
            ),
        ),
        attempt=(
            (
                "{He} practiced in front of the [cows, and the cows went on chewing|ducks, and the ducks swam away|"
                "goats, and the goats ate the music]. {He} practiced in front of the mirror and forgot every word. At "
                "last {he} hid {spot} and sang there, very low."
            ),
            (
                "{He} told {himself} to be brave, but that did not help. {He} ate a spoon of honey, but that did not "
                "help either. In the evening {he} sat {spot} and sang to the shadows."
            ),
        ),
        turn=(
            (
                'When the song was over, somebody sighed. It was {friend}. {Hero} wanted to run away. "Please stay," '
                'said {friend}. "I have never heard anything so fine. {Tip}."'
            ),
            (
                'All of a sudden there was clapping. There stood {friend}, with tears in {friend.his} eyes. "How long '
                'have you been listening?" asked {hero}. "Not long enough," said {friend}. "{Tip}."'
            ),
        ),
        ending=(
            (
                "On the night of the festival {hero} stood in the light with shaking knees. {He} found {friend} in "
                "the first row and sang only to {friend.him}. When the last note had faded, it was still for a "
                "moment, and then the cheering began."
            ),
            (
                "The great evening came. {Hero} opened {his} mouth, and for a second there was nothing. Then {friend} "
                "smiled at {him}, and out came the song, as clear as water. Even the lanterns seemed to lean closer."
            ),
        ),
        lesson=(
            "{Hero} was still a little afraid the next time, and {he} sang all the same.",
            "Now, every evening, the neighbors open their windows and listen.",
        ),
    ),
    Plot(
        name="the lost pearl",
        heroes=("sea",),
        words={
            "setting": "[a coral city under the warm sea|a sunny lagoon]",
            "habit": "[knew every tunnel of the reef|was always the first to wake and the last to sleep]",
            "weather": "[still|calm]",
            "dark": "[the kelp forest|the valley of shadows|the old wreck]",
        },
        cases=(
            {"helper": "whale", "fix": "took such a deep breath that all the sand was lifted up"},
            {
                "helper": "lantern fish",
                "fix": "lit the little lamp on {friend.his} head and shone it into every corner",
            },
            {"helper": "eel", "fix": "slipped through cracks where no one else could go"},
        ),
        trouble=(
            (
                "{When}, the moon pearl was missing. Every night it had lit the whole reef with its soft, white glow. "
                "Now it was as dark as ink down there, and the small ones were afraid to go to sleep."
            ),
            (
                "{When}, a strong current rushed through the reef and carried the moon pearl away. Without its light "
                "nobody could find their own front door, and there was a great deal of [bumping|bumping and "
                "grumbling]."
            ),
        ),
        attempt=(
            (
                "{Hero} swam to {dark}, where the current ends. It was cold there, and everything looked like "
                "something else. A rock seemed to be a shark, and a shark turned out to be only a rock. But there was "
                "no pearl."
            ),
            (
                '"I will bring it back," said {hero}, more bravely than {he} felt. {He} swam through {dark}, left and '
                "right and left again. Something brushed against {him}, and {he} almost turned around."
            ),
        ),
        turn=(
            (
                '"Who is there?" asked a voice. It was {friend}, whom everyone in the reef was afraid of. "I am '
                'looking for our light," said {hero}. "Will you help me?" Nobody had ever asked {friend} that. So '
                "{friend} {fix}."
            ),
            (
                "There in the gloom was {friend}. {Hero} had heard terrible stories about {friend.him}. But {friend} "
                'only said, "You look lost." When {hero} had explained, {friend} {fix}.'
            ),
        ),
        ending=(
            (
                "Something shimmered. It was the moon pearl, lying in an old [boot|teacup|bottle]! They carried it "
                "home together, and its glow filled the reef once more. Then everyone saw that {friend} had a very "
                "kind face."
            ),
            (
                "And there, between two stones, gleamed the moon pearl. When {hero} and {friend} came home with it, "
                "the whole reef lit up, and the little ones swam circles around {friend}."
            ),
        ),
        lesson=(
            "In the dark a stranger may look frightening, and in the light {friend.he} may become a friend.",
            "That night the reef slept well, and nobody bumped into anything.",
        ),
    ),
    Plot(
        name="the clock that stopped",
        words={
            "setting": "[a busy town with a famous clock|a city of bridges and bells]",
            "habit": "[liked to know how things work|took apart everything that had a screw]",
            "trait": "[clever|patient|curious]",
            "weather": "[busy|frosty]",
        },
        without=("mouse",),
        cases=(
            {
                "helper": "mouse",
                "cause": "a crumb of hard cheese",
                "fix": "crept in where no hand could reach and pulled it out",
            },
            {
                "helper": "clockmaker",
                "cause": "a tiny spring that was worn out",
                "fix": "showed {him} how to bend a new one out of wire",
            },
            {
                "helper": "[swallow|sparrow]",
                "cause": "a feather that was wound around the big wheel",
                "fix": "held the wheel still while {he} unwound it, turn by turn",
            },
        ),
        trouble=(
            (
                "{When}, the clock on the tower stopped at five to three. Nobody knew when to eat lunch or when to "
                "close the shops, and one [man|grandfather|teacher] took [three|four|nine] naps because it was always "
                "nap time."
            ),
            (
                "{When}, the hands of the great clock stood still. At first people were pleased, for now they were "
                "never late. But by evening they were all quarreling about what time it was."
            ),
        ),
        attempt=(
            (
                "{Hero} climbed the tower with {a item} in {his} bag. The clock was full of wheels, as big as tables "
                "and as small as coins. {He} cleaned them all and oiled them all, but they did not move."
            ),
            (
                "The mayor hit the clock with a broom, and that made it worse. So {hero} went up the tower {himself}. "
                "{He} looked at every wheel, and {he} made a drawing of each, but {he} could not find the fault."
            ),
        ),
        turn=(
            (
                'Then {he} heard a small cough. Behind the bell sat {friend}. "I think I know," said {friend}. "Put '
                'your ear here." There was {cause}! {Friend} {fix}.'
            ),
            (
                'In the evening light {friend} came in. "Four eyes see more than two," said {friend}. So they '
                "searched together, and behind the last wheel they found {cause}. {Friend} {fix}."
            ),
        ),
        ending=(
            (
                "Tick, said the clock. It was quiet for so long that {hero} closed {his} eyes. Tock, said the clock. "
                "Down in the square all the people threw their hats into the air, at three o'clock precisely."
            ),
            (
                "{Hero} gave the smallest wheel a gentle push. Tick, tock, tick, tock! The hands began to turn, and "
                "down below a great cheer went up for {hero} and {friend}."
            ),
        ),
        lesson=(
            "Great things often hang on something very small.",
            "Ever since then, {hero} and {friend} have wound the clock together on Sundays.",
        ),
    ),
    Plot(
        name="the desert well",
        without=("otter", "beaver", "panda", "lamb"),
        words={
            "setting": "[a village of clay houses at the edge of the desert|a camp of tents between the golden dunes]",
            "habit": "[could tell stories until the fire burned low|had a good ear for what others did not say]",
            "weather": "[blazing hot|dusty]",
        },
        cases=(
            {"helper": "camel", "fix": "lifted {friend.his} nose and smelled water behind the red rocks"},
            {"helper": "[desert fox|lizard]", "fix": "dug at a spot where the sand was a shade darker"},
            {"helper": "shepherd", "fix": "remembered an old song about a palm tree with two trunks"},
        ),
        trouble=(
            (
                "{When}, the bucket came up empty. The well had run dry! The goats bleated, the babies cried, and the "
                "nearest river was [nine|six|twelve] days away."
            ),
            (
                "{When}, there was only sand at the bottom of the well. People began to pack their things. But {hero} "
                "did not want to leave the place where {he} had learned to walk."
            ),
        ),
        attempt=(
            (
                "{Hero} took {a food} and half a bottle of water and walked out into the dunes. The sun stood over "
                "{him} like a big, white eye. By noon the bottle was almost empty, and {he} had seen nothing but sand."
            ),
            (
                "{He} dug behind the tents, and {he} dug beside the road, and found only [a rusty pot|an old sandal|a "
                "very surprised beetle]. Then {he} filled a small bottle with the last of the water and went farther "
                "out than {he} had ever gone before."
            ),
        ),
        turn=(
            (
                "In the shade of a rock lay {friend}, weak with thirst. {Hero} looked at {his} bottle. There were "
                "three sips left in it. {He} gave {friend.him} two. When {friend} could stand again, {friend.he} "
                "{fix}."
            ),
            (
                '"Water," whispered somebody. It was {friend}. {Hero} shared what {he} had, down to the last drop. '
                '"You gave me all of it," said {friend} in wonder. "Now follow me." And {friend} {fix}.'
            ),
        ),
        ending=(
            (
                "There, deep and cool and green, lay a hidden spring. {Hero} and {friend} drank, and then they ran "
                "back with the news. By sunset every jar in the village was full, and there was singing until "
                "midnight."
            ),
            (
                "They dug together, and all at once cold, clear water bubbled up between them. The people named it "
                "the Well of Two Friends, and no one in that desert was thirsty again."
            ),
        ),
        lesson=(
            "What you give away has a way of coming back.",
            "And {hero} had a new story to tell, the best of them all.",
        ),
    ),
    Plot(
        name="the tune nobody remembered",
        words={
            "setting": "[a house above a toy shop|a small town with crooked roofs]",
            "habit": "[could remember any song after hearing it once|loved old things that other people threw away]",
            "weather": "[dull|rainy]",
            "box": "[music box|silver flute|little organ|old fiddle]",
        },
        cases=(
            {"helper": "[nightingale|blackbird]", "memory": "My mother sang it in the garden, when this house was new"},
            {"helper": "sailor", "memory": "We used to sing it when the sea was calm and home was near"},
            {"helper": "relative", "memory": "It is the song that was played when I learned to dance"},
        ),
        trouble=(
            (
                "{When}, {hero} found {a box} that played only half a tune. It began so sweetly, and then it stopped, "
                "like a bridge that ends in the middle of the air. {He} simply had to know how it went on."
            ),
            (
                '{When}, Grandmother sat at the window and tried to hum an old song. "I have forgotten the end," said '
                'Grandmother sadly. "It was on the {box}, but the {box} has forgotten it too."'
            ),
        ),
        attempt=(
            (
                "{Hero} asked the band, and they knew a hundred songs, but not this one. {He} asked at the market and "
                "at the school. Everybody knew the beginning, and nobody knew the end."
            ),
            (
                "{Hero} tried to make up an ending. One was too cheerful, another too sad, and the third sounded like "
                "[a cat on the stairs|a goat in the bath|a bag full of spoons]. None of them was right."
            ),
        ),
        turn=(
            (
                "At dusk {he} sat down on the steps and hummed the half tune. Somewhere near, a voice took it up. It "
                'was {friend}! "{Memory}," said {friend}, and sang it to the very last note.'
            ),
            (
                "On the way home {he} heard {friend}, who was humming softly. {Hero} stood still as a stone. It was "
                'the tune, all of it! "{Memory}," said {friend}. "Shall I teach it to you?"'
            ),
        ),
        ending=(
            (
                "{Hero} ran home with the tune held carefully in {his} head, as if it were a full cup. That night the "
                "{box} played it from beginning to end, and all the windows in the street opened, one after another."
            ),
            (
                "They practiced until the moon rose. Then they went from door to door, {hero} with the {box} and "
                "{friend} with the song, and the old people smiled as if somebody had given them back a key."
            ),
        ),
        lesson=(
            "A song lives as long as somebody passes it on.",
            "Now you know why, in that town, everyone whistles the same tune.",
        ),
    ),
)

CHILDREN = Register(
    names=60,
    shapes=(
        "{opening}\n\n{trouble}\n\n{attempt}\n\n{turn}\n\n{ending} {lesson}",
        "{opening} {trouble}\n\n{attempt} {turn}\n\n{ending} {lesson}",
        "{opening} {trouble}\n\n{attempt}\n\n{turn} {ending}\n\n{lesson}",
        "{opening}\n\n{trouble} {attempt}\n\n{turn}\n\n{ending}",
    ),
    starts=(
        {
            "opening": "Once upon a time, in {setting}, there lived {a trait} {kind} named {hero}, who {habit}.",
            "when": "one {weather} [morning|day]",
            "night": "one {weather} night",
        },
        {
            "opening": (
                "Once upon a time, there was {a trait} {kind} named {hero}. {He} lived in {setting}, and {he} {habit}."
            ),
            "when": "one {weather} [morning|day]",
            "night": "one {weather} night",
        },
        {
            "opening": "Long ago, in {setting}, there lived {a trait} {kind} named {hero}. {He} {habit}.",
            "when": "one {weather} day",
            "night": "one night",
        },
        {
            "opening": "There was once {a trait} {kind} named {hero}, who lived in {setting} and {habit}.",
            "when": "then, one {weather} [morning|day]",
            "night": "then, one {weather} night",
        },
        {
            "opening": "In {setting} lived {a trait} {kind} named {hero}, who {habit}.",
            "when": "but one {weather} [morning|day]",
            "night": "but one night",
        },
    ),
    words={
        "trait": "[curious|cheerful|brave|dreamy|patient|clever|quiet|stubborn]",
        "friend_trait": "[wise old|gentle|merry|clever|grumpy|friendly]",
        "weather": "[misty|golden|bright]",
        "item": "[old compass|ball of string|candle|small lantern|bent hairpin|silver spoon]",
        "food": "[round loaf of bread|honey cake|piece of cheese|apple pie|raisin bun|pear tart]",
        "blanket": "[warm blanket|woolen shawl|quilted coat|soft scarf]",
        "umbrella": "[big umbrella|red umbrella]",
        "walk": (
            "[{He} crossed the meadow, climbed over a fence, and waded through a stream|The path wound past mossy "
            "stones and whispering birches|{He} walked past the old mill, over a wooden bridge, and up a steep hill|"
            "All morning {he} walked, and the birds kept {him} company]"
        ),
    },
    plots=_PLOTS,
)
