"""Stage 3 of the sample corpus: clean, modern stories, each with a theme. Tables only; see `sample_stories.py`."""

from storyladder.corpus.sample_words import Plot, Register

_PLOTS = (
    Plot(
        name="new at school",
        heroes=("child",),
        words={
            "place": "[in a big city|in a town by the sea|on a quiet street]",
            "habit": "[loved to draw comics|collected smooth stones|was good with numbers]",
            "trait": "[shy|quiet|careful]",
            "lunch": "[rice and beans|noodles|a cheese sandwich|dumplings|warm flat bread|tomato soup]",
        },
        trouble=(
            (
                "{When}, {hero} started at a new school. The halls were long and loud, and everyone already had a "
                "friend. {Hero} did not know where to sit."
            ),
            (
                "{When}, {hero}'s family moved, and {he} had to go to a new school. On the first morning, {his} "
                "stomach felt tight. Nobody there knew {his} name."
            ),
        ),
        attempt=(
            (
                "At lunch {he} opened {his} box. {He} had {lunch}, and the smell made {him} think of home. {He} sat "
                "at an empty table and looked at {his} shoes."
            ),
            (
                "{He} tried to smile at people, but they walked by too fast. At noon {he} sat alone with {his} lunch "
                "box and counted the minutes."
            ),
        ),
        turn=(
            (
                'Then {friend} stopped at the table. "Is this seat free?" asked {friend}. "I was new last year. I '
                '[cried in the coat room|hid in the library|ate lunch in the hall]." {Hero} looked up in surprise.'
            ),
            (
                '"Can I sit here?" someone asked. It was {friend}. "What is in your box?" said {friend}. "{Lunch}," '
                'said {hero}. "Do you want to try some?"'
            ),
        ),
        ending=(
            (
                "They shared {lunch} and talked until the bell rang. By the end of the week, the table was full, and "
                "{hero} knew [nine|seven|ten] names."
            ),
            (
                "After that day they ate together all the time. When another new child came in the spring, {hero} was "
                'the first to say, "You can sit with us."'
            ),
        ),
        lesson=(
            "One kind question can change a whole day.",
            "A new place stops being strange when someone knows your name.",
        ),
    ),
    Plot(
        name="the robot who learned kindness",
        heroes=("machine",),
        words={
            "place": "[in a busy train station|in a large hospital|in a modern library]",
            "habit": "[cleaned the floors|carried bags from door to door|sorted boxes]",
            "trait": "[small|silver|new]",
            "friend_trait": "[small|sad|lost]",
            "lost": "[stuffed rabbit|red glove|blue hat|picture book]",
        },
        trouble=(
            (
                "{When}, {hero} heard a sound that was not on {his} list. It was crying. On a bench sat {friend}, in "
                "tears. {Hero} did not have a rule for this."
            ),
            (
                "{When}, {hero} saw {friend}, who sat on the floor and cried. {Hero} checked all {his} rules. There "
                "was a rule for wet floors, but no rule for tears."
            ),
        ),
        attempt=(
            (
                '"Do you need cleaning?" asked {hero}. {Friend} shook {friend.his} head. "Do you need a map?" '
                "{Friend} shook {friend.his} head again."
            ),
            (
                '{Hero} gave {friend} a clean cloth and a bus plan. Neither of them helped. "[Error|Please wait|'
                'Unknown problem]," said {hero} quietly.'
            ),
        ),
        turn=(
            (
                'Then {friend} began to talk. "I lost my {lost}," said {friend}. {Hero} had an idea that came from no '
                "rule at all. {He} sat down and listened."
            ),
            (
                '"I just want my {lost}," said {friend}. {Hero} turned off {his} motor, sat down on the floor, and '
                'took {friend.his} hand. "Tell me about it," said {hero}.'
            ),
        ),
        ending=(
            (
                "They looked for it together, and they found the {lost} near the {spot}. {Friend} hugged {hero}. That "
                "night {hero} wrote a new rule: first, sit down and listen."
            ),
            (
                "Later {hero} found the {lost} near the {spot} and brought it back, clean and dry. {Friend} laughed. "
                "{Hero} saved that sound forever."
            ),
        ),
        lesson=(
            "Kindness is not a rule, but anyone can learn it.",
            "To help someone, begin by listening.",
        ),
    ),
    Plot(
        name="the torn page",
        words={
            "place": "[in a small town|in a busy neighborhood|in a village with one shop]",
            "habit": "[read a book every week|loved stories about the sea|went to the library on Fridays]",
            "book": "[a book about whales|a book about the stars|an old book of fairy tales|a big book of maps]",
            "cause": (
                "[pulled the book from {his} bag too fast|turned the page too quickly|dropped the book on the stairs]"
            ),
        },
        cases=({"helper": "librarian"},),
        trouble=(
            (
                "{When}, {hero} borrowed {book} from the library. At home {he} {cause}, and a page tore right down "
                "the middle. {Hero} felt cold."
            ),
            (
                "{When}, {hero} was reading {book}. It belonged to the library, and it was almost new. Then {he} "
                "{cause}, and one page was torn."
            ),
        ),
        attempt=(
            (
                "{He} could put it back on the shelf, and no one would ever know. {Hero} walked to the library, put "
                "the book on the shelf, and walked out again. But {his} feet got slower and slower."
            ),
            (
                "{He} hid the book under {his} bed. For three days {he} tried not to think about it. But every time "
                "{he} lay down, {he} felt as if the book could hear {him}."
            ),
        ),
        turn=(
            (
                'At last {he} went to the desk and told {friend} everything. "I tore it," said {hero}. "I am sorry. I '
                'can pay for it with my own money." {Friend} looked at the page for a moment.'
            ),
            (
                'So {he} took a deep breath and brought the book to {friend}. "This is my fault," {he} said. {His} '
                "voice shook a little. It was quiet, and then {friend} smiled."
            ),
        ),
        ending=(
            (
                '"Books can be mended," said {friend}. "Let me show you how." They fixed the page with thin paper and '
                "glue. Soon {hero} came every week to help mend old books."
            ),
            (
                '"Thank you for telling me," said {friend}, and took out some special tape. They repaired the page '
                "together. You could still see the line, but every word could be read."
            ),
        ),
        lesson=(
            "A mistake gets lighter when you tell the truth.",
            "Being honest is hard for a minute, and hiding is hard for days.",
        ),
    ),
    Plot(
        name="the garden on the roof",
        heroes=("child",),
        words={
            "place": "[in a tall apartment building|in a city with few trees]",
            "habit": "[liked to plan things|never sat still|wanted everything right now]",
            "trait": "[impatient|lively|busy]",
            "weather": "[spring|warm]",
            "crop": "[tomato|pepper|bean|pumpkin|strawberry]",
        },
        cases=({"helper": "neighbor"}, {"helper": "grandparent"}),
        trouble=(
            (
                '{When}, {friend} gave {hero} a {crop} plant in a small pot. "Put it on the roof," said {friend}. '
                "{Hero} wanted to eat from it that same week."
            ),
            (
                "{When}, {hero} decided to grow food on the roof. {Friend} helped {him} fill a box with soil, and "
                "they put in one {crop} plant."
            ),
        ),
        attempt=(
            (
                "{He} gave it water [five|six|ten] times a day. The leaves turned yellow. {He} pulled at the stem to "
                "make it longer, and it broke a little. {Hero} was angry at the plant."
            ),
            (
                "Every hour {he} ran up the stairs to look. Nothing seemed to happen. After ten days {hero} kicked "
                'the box. "This is a waste of time," {he} said.'
            ),
        ),
        turn=(
            (
                '"You cannot hurry a plant," said {friend}. "You can only take care of it." So {hero} made a plan. A '
                "little water in the morning, one drawing in the evening, and nothing else."
            ),
            (
                '"Draw it once a day," said {friend}, "and do not look at it in between." {Hero} thought that this '
                "was silly, but {he} did it. After a month {he} put all the drawings side by side."
            ),
        ),
        ending=(
            (
                "In the drawings {he} could see it grow. In [July|August] there was one {crop}, and then there were "
                "[twelve|nine|seven]. {Hero} gave the first one to {friend}."
            ),
            (
                "The change was easy to see now. By summer's end, {hero} and {friend} shared the first ripe {crop} on "
                "the roof, while the sun went down behind the city."
            ),
        ),
        lesson=(
            "Patience is also a kind of work.",
            "Some things grow when you are not looking.",
        ),
    ),
    Plot(
        name="stopping in a race",
        without=("mole", "hedgehog", "elephant"),
        words={
            "place": "[in a town in the hills|in a village near a lake]",
            "habit": "[ran every morning before school|was the fastest runner on the street]",
            "trait": "[strong|quick|determined]",
            "helper": "playmate",
            "hurt": "[twisted {friend.his} foot|slipped on the wet leaves|tripped over a root]",
        },
        trouble=(
            (
                "{When}, it was time for the big race. {Hero} had trained for it all year. At the start {he} was in "
                "front, with only {friend} close behind {him}."
            ),
            (
                "{When}, {hero} stood at the starting line. {He} wanted the gold medal more than anything. Next to "
                "{him} stood {friend}, who wanted it too."
            ),
        ),
        attempt=(
            (
                "They ran past the bridge and up the long hill. {Hero} could hear {friend} breathing. The finish was "
                "already in sight, and the people were shouting."
            ),
            (
                "For [two|three] miles they ran side by side. Then {hero} saw the finish line and began to run as "
                "fast as {he} could."
            ),
        ),
        turn=(
            (
                "Suddenly there was a cry. {Friend} had {hurt} and was lying on the ground. {Hero} looked at the "
                "finish line. Then {he} turned around and ran back."
            ),
            (
                "Behind {him} someone fell. {Friend} had {hurt}. The other runners passed them, one by one. {Hero} "
                "stopped, and held out a hand."
            ),
        ),
        ending=(
            (
                '"You could have won," said {friend}. "Maybe next year," said {hero}. They walked over the line '
                "together, slowly, arm in arm. They were last, and the people stood up and clapped."
            ),
            (
                "They finished the race together, one step at a time. There was no medal for that. But the next "
                'morning {friend} came to {hero}\'s door and said, "Do you want to train together?"'
            ),
        ),
        lesson=(
            "How you finish matters more than when.",
            "Medals get dusty, but friends do not.",
        ),
    ),
    Plot(
        name="the lost wallet",
        heroes=("child",),
        words={
            "place": "[in a busy city|in a town with a market]",
            "habit": "[was saving money for a new bike|dreamed of a red guitar|wanted a real telescope]",
            "thing": "[wallet|brown purse|red purse]",
            "where": "[on a park bench|at the bus stop|in front of the bakery|under a table in the market]",
        },
        cases=(
            {"helper": "bus driver", "need": "the money for {friend.his} rent"},
            {"helper": "neighbor", "need": "the only photo of {friend.his} family"},
            {"helper": "[gardener|painter]", "need": "a whole month of pay"},
            {"helper": "librarian", "need": "two tickets for the trip of {friend.his} life"},
        ),
        trouble=(
            (
                "{When}, {hero} found a {thing} {where}. It was full of money. {He} looked around, but there was no "
                "one near."
            ),
            (
                "{When}, {hero} saw something {where}. It was a {thing}, and when {he} opened it, {he} counted more "
                "money than {he} had ever seen."
            ),
        ),
        attempt=(
            (
                "{Hero} thought of all the things {he} could buy. {He} put the {thing} in {his} bag and started to "
                "walk home. But the bag seemed to get heavier with every step."
            ),
            '"Finders keepers," {he} told {himself}. {He} said it three times, but it did not sound right even once.',
        ),
        turn=(
            (
                "Then {he} looked inside once more and found a card with an address. {He} turned around and walked "
                "there. The door opened, and there was {friend}, with a worried face."
            ),
            (
                "Then {he} looked inside again. There was a note with a phone number. {Hero} asked {his} mother to "
                "call it. Ten minutes later {friend} came running down the street."
            ),
        ),
        ending=(
            (
                '"My {thing}!" cried {friend}. "I have looked for it all day. It has {need} in it." {Friend} wanted '
                "to give {hero} a reward, but {he} shook {his} head. The smile was enough."
            ),
            (
                'When {friend} saw the {thing}, {friend.he} sat down on the steps and laughed. "It has {need} in it," '
                'said {friend}. "You do not know what you have done for me."'
            ),
        ),
        lesson=(
            "{Hero} walked home with an empty bag and a light heart.",
            "Doing the right thing is easier to carry.",
        ),
    ),
    Plot(
        name="the spot on the picture",
        words={
            "place": "[in a house full of paintings|in a bright apartment|in a small town]",
            "habit": "[painted every day|wanted every picture to be perfect]",
            "trait": "[careful|serious|talented]",
            "picture": "[white horse|quiet lake|snowy field|bowl of fruit]",
        },
        cases=(
            {
                "helper": "[kitten|parrot|puppy]",
                "oops": "bumped the table",
                "idea": "walked over the page and left a row of prints",
            },
            {
                "helper": "teacher",
                "oops": "opened the window, and the wind knocked over the ink",
                "idea": "turned the page around",
            },
            {"helper": "playmate", "oops": "sneezed", "idea": "turned the page upside down and giggled"},
        ),
        without=("kitten", "puppy"),
        trouble=(
            (
                "{When}, {hero} was painting {a picture} for a contest. It was almost done. Then {friend} {oops}, and "
                "a big drop of black ink fell on the page."
            ),
            (
                "{When}, {hero} worked all day on a painting of {a picture}. Just before the end, {friend} {oops}. "
                "There was a fat, black spot in the middle."
            ),
        ),
        attempt=(
            (
                "{Hero} tried to wash it off, but the spot only grew. {He} tried to paint over it, but the black came "
                "through. {He} wanted to throw the picture away."
            ),
            (
                '"It is ruined," said {hero}. {He} rubbed and scratched until there was almost a hole in the paper. '
                "The spot stayed where it was."
            ),
        ),
        turn=(
            (
                "{Friend} {idea}. {Hero} looked again. From this side the spot was not a spot at all. It looked like "
                "{a surprise}."
            ),
            (
                "Then {friend} {idea}. {Hero} had to laugh, and when {he} laughed, {he} saw it. With [two lines and a "
                "dot|a few small lines|one big eye], the spot could be {a surprise}."
            ),
        ),
        ending=(
            (
                "So {he} painted {a surprise} in the middle of the {picture}. It was strange and funny, and people "
                "stood in front of it for a long time. It did not win, but it made the judges smile."
            ),
            (
                "{He} picked up {his} brush and went to work. When the contest came, everyone wanted to see the "
                "{picture} with {a surprise} in it."
            ),
        ),
        lesson=(
            "After that, {hero} was not so afraid of spots.",
            "A mistake can be the start of a better idea.",
        ),
    ),
    Plot(
        name="the night without power",
        heroes=("child",),
        words={
            "place": "[in a tall building in the city|in a house on a long street]",
            "habit": "[watched cartoons every evening|played games on a screen|never talked to the neighbors]",
            "trait": "[bored|clever|modern]",
            "weather": "[stormy|windy]",
            "game": (
                "[made shadow animals on the wall|told ghost stories that were not too scary|sang old songs|played "
                "cards by candlelight]"
            ),
        },
        cases=({"helper": "neighbor"}, {"helper": "grandparent"}, {"helper": "relative"}),
        trouble=(
            (
                "{When}, lightning struck, and all the lights went out. The screens were black, and the whole street "
                'was dark. "What do we do now?" asked {hero}.'
            ),
            (
                "{When}, just as {hero} sat down to watch a film, the power went off. {He} pressed every button in "
                "the house. Nothing worked."
            ),
        ),
        attempt=(
            (
                "{He} lay on the sofa and looked at the ceiling. {He} looked at the clock, but the clock had stopped "
                "too. It was the longest [hour|evening] of {his} life."
            ),
            (
                '"This is terrible," said {hero}. {He} walked from room to room and tried the light switches again, '
                "just in case."
            ),
        ),
        turn=(
            (
                'Then there was a knock at the door. It was {friend}, with a box of candles. "When I was young, this '
                'was the best part of the week," said {friend}.'
            ),
            (
                '{Friend} came in with one candle and a plate of {snack}. "Sit down," said {friend}. "I will show you '
                'what we did before there were screens."'
            ),
        ),
        ending=(
            (
                "They {game} and ate {snack}. Soon other people came with more candles, and the room was full of "
                'voices. When the lights came back, everybody said, "Oh no!" and {hero} turned them off again.'
            ),
            (
                "They {game} until it was very late. {Hero} laughed so much that {his} sides hurt. When the power "
                'came back, {he} asked, "Can we do this again next week?"'
            ),
        ),
        lesson=(
            "Since then, there has been one night a week without screens.",
            "In the dark, {hero} had seen the people around {him} for the first time.",
        ),
    ),
    Plot(
        name="always in a hurry",
        words={
            "place": "[in a busy city|in a town with a tram]",
            "habit": "[was always in a hurry|ran everywhere, even to bed]",
            "trait": "[busy|nervous|quick]",
            "missed": "[bus|train|tram]",
            "sight": (
                "[a spider making a web|a bird feeding its chicks|a flower in a crack in the wall|a tiny snail on a "
                "leaf]"
            ),
        },
        cases=({"helper": "[painter|mail carrier]"}, {"helper": "[turtle|snail|cat]"}, {"helper": "grandparent"}),
        trouble=(
            (
                "{When}, {hero} ran as fast as {he} could, but the {missed} left without {him}. The next one would "
                "come in an hour. An hour! {Hero} stamped {his} foot."
            ),
            (
                "{When}, {hero} came to the stop just in time to see the {missed} drive away. {He} shouted and waved, "
                "but it did not stop."
            ),
        ),
        attempt=(
            (
                "{He} walked up and down. {He} looked at the clock every minute, and the clock seemed to go slower "
                "each time."
            ),
            "{He} tried to make the time pass by being angry, but that did not work. It only made {his} head hurt.",
        ),
        turn=(
            (
                '"You are missing the best part," said a voice. It was {friend}, sitting on the bench. "Of what?" '
                "asked {hero}. {Friend} pointed. There was {sight}."
            ),
            (
                'On the bench sat {friend}, who did not look angry at all. "I missed it too," said {friend}, "and I '
                'am glad. Look there." {Hero} looked. It was {sight}.'
            ),
        ),
        ending=(
            (
                "{Hero} sat down and watched. {He} asked one question, and then another, and {friend} knew many "
                'things. When the {missed} came, {hero} was surprised. "Already?" {he} said.'
            ),
            (
                "They watched it together and hardly spoke. {Hero} noticed that {he} could hear the wind. When the "
                "next {missed} came, {he} almost let it go."
            ),
        ),
        lesson=(
            "From then on, {hero} left home ten minutes early and walked slowly.",
            "You see more of the world when you stop.",
        ),
    ),
    Plot(
        name="practice and the violin",
        heroes=("child",),
        words={
            "place": "[on a street of music shops|in an apartment over a bakery|in a small village]",
            "habit": "[dreamed of playing on a stage|tapped on everything like a drum]",
            "instrument": "[violin|flute|trumpet|piano|guitar|cello]",
            "trait": "[eager|hopeful|proud]",
            "noise": "[a door in the wind|an angry goose|a cat with a cold|a rusty bike]",
        },
        cases=({"helper": "music teacher"}, {"helper": "relative"}, {"helper": "neighbor"}),
        trouble=(
            (
                "{When}, {hero} got a {instrument} and wanted to play it at once. But the first note sounded like "
                "{noise}. The second one was worse."
            ),
            (
                "{When}, {hero} had a first lesson on the {instrument}. In {his} head the music was beautiful. In the "
                "room it sounded like {noise}."
            ),
        ),
        attempt=(
            '{He} tried for a week, and then {he} put the {instrument} under the bed. "I have no talent," said {hero}.',
            (
                "After three weeks it still sounded like {noise}. The dog left the room whenever {he} began. {Hero} "
                "wanted to stop."
            ),
        ),
        turn=(
            (
                '{Friend} heard about it and brought an old tape. "This is me, in my first year," said {friend}. They '
                "listened. It sounded just like {noise}! They both laughed until they cried."
            ),
            (
                '"Play one good note a day," said {friend}. "Only one. Then stop." That seemed easy enough. So {hero} '
                "played one good note, and the next day another."
            ),
        ),
        ending=(
            (
                "After that, {hero} practiced for ten minutes every day. In spring {he} played a whole song at the "
                "window. Across the street somebody clapped, and the dog stayed in the room."
            ),
            (
                "One clear note became two, and two became a song. A year later {hero} stood on a small stage, and "
                "{friend} sat in the front row. It did not sound like {noise} at all."
            ),
        ),
        lesson=(
            "Everyone who is good was once a beginner.",
            "Talent is mostly the courage to sound bad for a while.",
        ),
    ),
    Plot(
        name="the stray who did not trust",
        heroes=("child",),
        words={
            "place": "[on a street near the harbor|in a town with narrow lanes]",
            "habit": "[loved animals|had always wanted a pet]",
            "trait": "[gentle|patient|lively]",
            "food": "[fish|chicken|milk]",
            "friend": "the {animal}",
            "friend at first": "{a friend_trait} {animal}",
        },
        cases=(
            {
                "animal": "cat",
                "sound": "purr",
                "helper": "cat",
                "friend_trait": "[thin gray|small orange|black and white]",
            },
            {
                "animal": "dog",
                "sound": "breathe",
                "helper": "dog",
                "friend_trait": "[thin brown|small black|shaggy gray]",
            },
        ),
        trouble=(
            (
                "{When}, {hero} saw {friend} behind the trash cans. {Hero} ran to pet {friend.him}, but the {animal} "
                "jumped over the wall and was gone."
            ),
            (
                "{When}, {hero} met {friend} in the rain. {He} held out {his} hand, but the {animal} shook with fear "
                "and hid under a car."
            ),
        ),
        attempt=(
            (
                "The next day {hero} brought some {food} and tried to grab the {animal}. That was a mistake. {He} got "
                "a scratch on {his} arm, and the {animal} stayed away for a week."
            ),
            (
                "{Hero} called and called. {He} even built a trap out of a box. But the {animal} was too clever, and "
                "now {friend.he} was more afraid than before."
            ),
        ),
        turn=(
            (
                'Then {hero} thought about it. "I would be afraid too," {he} said. So every day {he} put down some '
                "{food}, sat far away with a book, and did nothing at all."
            ),
            (
                "{Hero} tried something new. {He} sat on the step, read aloud in a soft voice, and put some {food} "
                "beside {him}. {He} did not look, and {he} did not move."
            ),
        ),
        ending=(
            (
                "Each day the {animal} came a little closer. In the [third|fourth|fifth] week, {hero} felt something "
                "warm against {his} leg. {He} could feel the {animal} {sound}. {Hero} did not move for an hour."
            ),
            (
                "On the [twentieth|thirtieth|twelfth] day the {animal} lay down next to {him}. {Hero} could feel "
                "{friend.him} {sound}. That evening, two of them walked home."
            ),
        ),
        lesson=(
            "Trust cannot be caught. It has to come by itself.",
            "If you want someone to come closer, sit still.",
        ),
    ),
    Plot(
        name="two stands on one street",
        words={
            "place": "[on a sunny street|in a town with a big park]",
            "habit": "[liked to make plans|wanted to earn some money]",
            "trait": "[clever|proud|busy]",
            "helper": "playmate",
            "weather": "hot",
        },
        cases=(
            {"mine": "lemonade", "yours": "cookies"},
            {"mine": "iced tea", "yours": "muffins"},
            {"mine": "orange juice", "yours": "pancakes"},
            {"mine": "cherry juice", "yours": "waffles"},
        ),
        trouble=(
            (
                "{When}, {hero} opened a stand and sold {mine}. It went well for one hour. Then {friend} opened a "
                "stand right across the street and sold {yours}."
            ),
            (
                "{When}, {hero} put a table on the sidewalk and sold {mine}. Soon there was a second table. It "
                "belonged to {friend}, and it was full of {yours}."
            ),
        ),
        attempt=(
            (
                "{Hero} made a bigger sign[| with lights on it]. {Friend} made a sign that was bigger still. {Hero} "
                "shouted, and {friend} shouted louder. The people got a headache and went home."
            ),
            (
                "{Hero} lowered the price, and so did {friend}. By noon everything was almost free, and neither of "
                "them had earned a thing."
            ),
        ),
        turn=(
            (
                "In the heat {hero} grew hungry. Across the street {friend} grew thirsty. They looked at each other "
                'for a while. "Your {yours} look good," said {hero} at last. "So does your {mine}," said {friend}.'
            ),
            (
                'Then an old man stopped between them. "What a pity," said the man. "I would like {mine} with '
                '{yours}, but I cannot cross the street so often." {Hero} and {friend} looked at each other.'
            ),
        ),
        ending=(
            (
                "They carried the two tables together and painted one sign: {mine} and {yours}. By evening everything "
                "was sold out, and they divided the money in two equal parts."
            ),
            (
                "Five minutes later there was only one stand. {Hero} poured {mine}, {friend} served {yours}, and the "
                "line went all the way around the corner."
            ),
        ),
        lesson=(
            "Together they had more than twice as much.",
            "It is better to have a partner than a rival.",
        ),
    ),
    Plot(
        name="a friend moves away",
        words={
            "place": "[on a quiet street|in a town near the mountains]",
            "habit": "[built tree houses|knew every tree on the street|rode a green bike]",
            "trait": "[loyal|cheerful|quiet]",
            "helper": "playmate",
            "friend_trait": "[funny|clever|lively]",
            "keepsake": "[smooth stone|blue marble|wooden whistle|brass key]",
        },
        trouble=(
            (
                '{When}, {friend} told {hero} some bad news. "We are moving away," said {friend}, "to another '
                'country." They had been best friends since they were [three|four|very small].'
            ),
            (
                "{When}, there was a big truck in front of the house of {friend}, {hero}'s best friend. It was full "
                "of boxes. {Hero} had known about it for weeks, but {he} had not believed it."
            ),
        ),
        attempt=(
            (
                "{Hero} was so sad that {he} became angry. {He} did not come to say goodbye. {He} sat in {his} room "
                "and watched the clock instead."
            ),
            (
                '"Then go," said {hero}, and walked off. {He} did not mean it. At home {he} lay on the floor and felt '
                "as if someone had taken a wall out of the house."
            ),
        ),
        turn=(
            (
                "But at the last minute {hero} ran down the street. The car had already started. {He} put {a "
                'keepsake} into {friend}\'s hand. "Keep it for me," {he} said. "Then you have to come back one '
                'day."'
            ),
            (
                "{He} could not sleep. Before the sun was up, {he} ran over in {his} pajamas and gave {friend} {a "
                'keepsake}. "It is the best thing I have," {he} said. "Bring it back one day."'
            ),
        ),
        ending=(
            (
                "They wrote letters, long ones and funny ones. [Two summers|Three years|One long year] later there "
                "was a knock at the door. There stood {friend}, much taller, with the {keepsake}. They talked as if "
                "no time had passed."
            ),
            (
                "{Hero} wrote the first letter that same week. An answer came, with a drawing of a new room. Over the "
                "bed, on a string, hung the {keepsake}. After that there were many more letters, and {hero} kept them "
                "all."
            ),
        ),
        lesson=(
            "Far away is not the same as gone.",
            "A real friendship can travel by mail.",
        ),
    ),
    Plot(
        name="sharing the sky",
        words={
            "place": "[in a village with no street lights|on a farm far from the city]",
            "habit": "[knew the names of all the planets|wanted to fly to the moon]",
            "trait": "[curious|clever|dreamy]",
            "planet": "[the rings of Saturn|the moons of Jupiter|the mountains of the moon|the green comet]",
        },
        cases=({"helper": "playmate"}, {"helper": "neighbor"}),
        trouble=(
            (
                "{When}, {hero} got a telescope. {He} set it up behind the house, and nobody else was allowed to "
                'touch it. "It could break," {he} said. From the fence, {friend} watched.'
            ),
            (
                "{When}, {hero} saw {planet} through a telescope for the first time. The sight was so beautiful that "
                "{he} kept it a secret. When {friend} asked to look, {he} said no."
            ),
        ),
        attempt=(
            (
                "Night after night {hero} looked at the sky alone. {He} saw wonderful things. But when {he} said "
                '"Oh!" there was nobody to answer.'
            ),
            (
                "{Hero} tried to enjoy it. Still, something was missing. {He} checked the lens, and {he} checked the "
                "screws, but it was not the telescope."
            ),
        ),
        turn=(
            (
                'One night {he} turned to the fence. "Do you want to see {planet}?" {he} asked. {Friend} came and '
                'bent down to look. For a long time it was quiet. Then {friend} whispered, "Oh!"'
            ),
            (
                'Then {he} saw {friend}, who was looking up at the sky through an old paper tube. "Come here," said '
                '{hero}. "Mine works better for two." {Friend} bent down, looked, and whispered, "Oh!"'
            ),
        ),
        ending=(
            (
                "That one small word made {hero} happier than all the stars. Soon half the [village|school|street] "
                "stood in line behind the house, and {hero} showed {planet} to every one of them."
            ),
            (
                "They took turns until midnight, and {friend} found something that {hero} had missed. It was a tiny "
                "blue star, right next to {planet}."
            ),
        ),
        lesson=(
            "Wonder grows when you share it.",
            "The sky is big enough for everyone.",
        ),
    ),
    Plot(
        name="building from old things",
        words={
            "place": "[on a street with a big junk yard|in a poor but friendly village]",
            "habit": "[kept every screw and every button|fixed things that were not even broken]",
            "trait": "[inventive|clever|cheerful]",
            "built": "[a windmill|a go-cart|a little library on wheels|a playground|a water pump]",
            "parts": (
                "[two bike wheels, a chair and a fan|a bathtub, some rope and an old door|tin cans, pipes and a "
                "broken umbrella]"
            ),
        },
        cases=({"helper": "playmate"}, {"helper": "carpenter"}, {"helper": "grandparent"}),
        trouble=(
            (
                "{When}, {hero} had a big idea. {He} wanted to build {built}. But there was no money for it, not even "
                "for the nails."
            ),
            '{When}, {hero} drew a plan for {built}. "That costs far too much," people said. "Draw something smaller."',
        ),
        attempt=(
            (
                "So {he} looked at what other people threw away. {He} found {parts}. {He} worked all week, but when "
                "{he} tried it out, it fell apart with a crash."
            ),
            (
                "{Hero} went to the junk yard and came back with {parts}. The first try made everybody laugh. The "
                "second try made a lot of [smoke|noise|foam]."
            ),
        ),
        turn=(
            (
                'Only {friend} did not laugh. "It is a good plan," said {friend}. "It needs one more pair of hands." '
                "They took it apart, drew a better plan, and started again."
            ),
            (
                'Then {friend} looked at the plan. "What if we turn this part around?" asked {friend}. {Hero} stared '
                "at it. Why had {he} not seen that?"
            ),
        ),
        ending=(
            (
                "After [nine|six|twenty] more tries it worked. {Built}, made of {parts}! The same people who had "
                "laughed now asked if they could help to paint it."
            ),
            (
                "On Sunday they showed it to the whole street. It was {built}, it creaked a little, and it worked. "
                "{Hero} and {friend} were already planning the next one."
            ),
        ),
        lesson=(
            "Nothing is junk if you have an idea.",
            "A thing that fails is only half finished.",
        ),
    ),
    Plot(
        name="the neighbor who never smiled",
        heroes=("child", "animal"),
        words={
            "place": "[in a row of brick houses|on a quiet lane]",
            "habit": "[greeted everyone on the street|played ball in front of the house]",
            "trait": "[friendly|cheerful|noisy]",
            "helper": "neighbor",
            "friend_trait": "[stern|gray-haired|silent]",
            "gift": "[a jar of plum jam|a warm loaf of bread|a drawing of the street|a bowl of soup]",
            "past": (
                "[played the drums in a band|been a cook on a ship|trained horses for a circus|driven a train through "
                "the mountains]"
            ),
        },
        trouble=(
            (
                "{When}, {hero}'s ball flew over the fence. Everyone on the street was afraid of that garden, because "
                "{friend} lived there and never smiled."
            ),
            (
                '{When}, {hero} said good morning to {friend}. There was no answer, as always. "That one is mean," '
                "the others said. {Hero} was not so sure."
            ),
        ),
        attempt=(
            (
                "{Hero} rang the bell. The curtain moved, but nobody opened the door. {He} wrote a note that said "
                "please, and {he} got no answer."
            ),
            (
                "The next day {hero} waved. The day after, {he} waved again. {Friend} only closed the window. The "
                "others laughed at {hero}."
            ),
        ),
        turn=(
            (
                "{Hero} did not give up. {He} came back with {gift} and put it on the step. This time the door "
                'opened. "Nobody has brought me anything in years," said {friend} slowly.'
            ),
            (
                "Then {hero} saw that there was only one cup on the table in there. {He} went home and came back with "
                '{gift}. "This is for you," {he} said, as loudly as {he} could. "You must not shout," said {friend}. '
                '"I only forgot how to talk to people."'
            ),
        ),
        ending=(
            (
                "They sat down in the kitchen and talked. {Friend} had once {past}! {Hero} stayed until it got dark, "
                "and when {he} left, {friend} was smiling."
            ),
            (
                "After that, {hero} came by every week, and {friend} told {him} wonderful stories. {Friend} had once "
                "{past}."
            ),
        ),
        lesson=(
            "You cannot know a house from the outside.",
            "People who seem cold are sometimes only alone.",
        ),
    ),
)

SIMPLE = Register(
    names=60,
    shapes=(
        "{opening} {trouble}\n\n{attempt}\n\n{turn}\n\n{ending} {lesson}",
        "{opening}\n\n{trouble} {attempt}\n\n{turn} {ending}\n\n{lesson}",
        "{opening} {trouble}\n\n{attempt} {turn}\n\n{ending} {lesson}",
        "{opening}\n\n{trouble}\n\n{attempt} {turn}\n\n{ending}",
    ),
    starts=(
        {
            "opening": "{Hero} was {a trait} {kind} who {habit}. {He} lived {place}.",
            "when": "one {weather} [day|afternoon]",
        },
        {
            "opening": "{Place}, there was {a trait} {kind} named {hero}. {He} {habit}.",
            "when": "one {weather} [day|afternoon]",
        },
        {
            "opening": "{A trait} {kind} named {hero} lived {place}. {Hero} {habit}.",
            "when": "one [day|{weather} day]",
        },
        {
            "opening": "Once upon a time, there was {a trait} {kind} named {hero} who {habit}.",
            "when": "one [day|{weather} day]",
        },
        {
            "opening": "There was {a trait} {kind} named {hero}. {He} lived {place} and {habit}.",
            "when": "one [day|{weather} day]",
        },
    ),
    words={
        "trait": "[curious|cheerful|thoughtful|quiet|lively]",
        "friend_trait": "[kind|friendly|calm|cheerful]",
        "weather": "[spring|summer|autumn|winter|rainy|sunny|cold|warm]",
        "spot": "[stairs|main door|old clock|elevator]",
        "snack": "[cookies|apple slices|warm bread|roasted nuts]",
        "surprise": "[happy whale|sleeping bear|black cat|round beetle|flying crow|fat penguin]",
    },
    plots=_PLOTS,
)
