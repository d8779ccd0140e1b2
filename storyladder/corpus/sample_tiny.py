"""Stage 1 of the sample corpus: very simple stories for a four-year-old. Tables only; see `sample_stories.py`."""

from storyladder.corpus.sample_words import Plot, Register

_PLOTS = (
    Plot(
        name="something is stuck in a tree",
        without=("kitten", "raccoon", "panda", "elephant", "tiger", "bear"),
        words={
            "likes": "[to play outside|windy days|to run in the wind]",
            "weather": "windy",
            "thing": "[red kite|blue kite|yellow balloon|red balloon|green balloon|paper plane]",
            "place": "[park|big field|meadow|garden]",
        },
        cases=(
            {"helper": "[squirrel|monkey]", "fix": "ran up the tree and pushed the {thing} down"},
            {"helper": "[robin|crow|sparrow]", "fix": "flew up to the branch and pulled the {thing} free"},
            {
                "helper": "giraffe",
                "fix": "reached up with {friend.his} very long neck and took the {thing} from the branch",
            },
            {"helper": "parent", "fix": "got a tall ladder and climbed up to the {thing}"},
        ),
        trouble=(
            (
                "{When}, {hero} took {his} {thing} to the {place}. Then the wind blew hard. Whoosh! The {thing} flew "
                "up and got stuck in a tall tree."
            ),
            (
                "{When}, {hero} was playing with {his} {thing} in the {place}. A big wind took it away, and it got "
                "stuck at the top of a tree."
            ),
        ),
        attempt=(
            (
                "{Hero} jumped and jumped, but {he} could not reach it. {He} was [very sad|so sad that {he} wanted to "
                "cry]."
            ),
            (
                '{Hero} shook the tree, but the {thing} did not move. "Oh no!" said {hero}. "[The tree is too tall|I '
                'am too small]!"'
            ),
            (
                "{He} tried to reach it with a long stick, but the stick was too short. {Hero} sat down and [began to "
                "cry|cried]."
            ),
        ),
        turn=(
            (
                'Just then, {friend} came by. "[Do not cry|Do not be sad|Do not worry]," said {friend}. "I can help '
                'you." {Friend} {fix}.'
            ),
            (
                '{Friend} saw {him}. "What is wrong?" asked {friend}. "My {thing} is in the tree," said {hero}. So '
                "{friend} {fix}."
            ),
        ),
        ending=(
            '"Thank you!" said {hero}, and {he} gave {friend} a big hug. They played with the {thing} all day.',
            "{Hero} was so happy. {He} and {friend} played with the {thing} together, and {he} held it very tight.",
        ),
        lesson=(
            "{Hero} learned that it is good to ask for help.",
            "From that day on, {hero} held {his} {thing} tight when the wind blew.",
        ),
    ),
    Plot(
        name="a favorite thing is lost",
        without=("puppy",),
        words={
            "likes": "[to play with {his} {thing}|to hug {his} {thing} at night]",
            "thing": "[teddy bear|toy car|red ball|blue blanket|doll|wooden horse|little drum|toy train]",
            "place": (
                "[under the bed|behind the big chair|in the pile of leaves|under the rose bush|behind the door|in the "
                "old box]"
            ),
        },
        cases=(
            {"helper": "[puppy|dog]", "fix": "put {friend.his} nose to the ground and went sniff, sniff, sniff"},
            {"helper": "[mouse|ant|beetle]", "fix": "was very small and looked in all the small places"},
            {"helper": "owl", "fix": "had very big eyes and could see in the dark"},
            {"helper": "grandparent", "fix": "thought hard and remembered where {hero} had played that morning"},
        ),
        trouble=(
            "{When}, {hero} could not find {his} {thing}. It was {his} favorite toy in all the world.",
            '{When}, {hero} wanted to play, but {his} {thing} was gone. "Where is my {thing}?" {he} asked.',
        ),
        attempt=(
            "{He} looked up. {He} looked down. {He} looked all around. But the {thing} was not there.",
            (
                "{He} looked [in the kitchen|on the table|by the window], but it was not there. {He} looked in the "
                "garden, but it was not there. {Hero} was sad."
            ),
        ),
        turn=(
            '{Friend} wanted to help. {Friend} {fix}. Then {friend} called, "Look, {hero}! Look {place}!"',
            (
                'Then {hero} met {friend}. "Please help me find my {thing}," said {hero}. {Friend} {fix}. They looked '
                "together, and then they looked {place}."
            ),
        ),
        ending=(
            "And there it was! The {thing} was {place} all along. {Hero} hugged it and laughed.",
            'There was the {thing}, {place}! "You found it!" said {hero}. {He} was so happy that {he} danced.',
        ),
        lesson=(
            "That night, {hero} went to bed with the {thing} next to {him}.",
            "Now {hero} always puts the {thing} back in its place.",
            "Two can look better than one.",
        ),
    ),
    Plot(
        name="afraid of the dark",
        heroes=("child", "animal"),
        without=("owl", "mole", "badger"),
        words={"likes": "the warm sun", "sound": "[tap, tap, tap|whoo, whoo|creak, creak|swish, swish]"},
        cases=(
            {"helper": "firefly", "fix": "turned on {friend.his} tiny light", "light": "the tiny light"},
            {"helper": "owl", "fix": "showed {him} the bright moon", "light": "the moon"},
            {"helper": "parent", "fix": "lit a little lamp", "light": "the little lamp"},
            {"helper": "grandparent", "fix": "opened the curtain and showed {him} a bright star", "light": "the star"},
        ),
        trouble=(
            "{Hero} was afraid of the dark. {Night}, when {he} was in bed, {he} heard a sound. It went {sound}.",
            "{Night}, everything was dark. {Hero} could not sleep. Then {he} heard a sound. It went {sound}.",
        ),
        attempt=(
            '{Hero} hid under {his} blanket. "[Is it a monster|Who is there]?" {he} asked in a small voice.',
            "{He} closed {his} eyes and counted to ten, but the sound did not stop. {Hero} was very scared.",
        ),
        turn=(
            (
                '{Friend} came to {him}. "Do not be afraid," said {friend}, and {friend.he} {fix}. "Look! It is only '
                '[the wind in the trees|a branch at the window|the old door]."'
            ),
            (
                'Then {friend} came and {fix}. "See?" said {friend}. "It is only [a branch at the window|the wind|a '
                'tree that says good night]."'
            ),
        ),
        ending=(
            "{Hero} looked at {light} and smiled. The dark was not so bad. Soon {he} was fast asleep.",
            '"The dark is soft and quiet," said {hero}. {He} looked at {light}, closed {his} eyes, and fell asleep.',
        ),
        lesson=(
            "After that night, {hero} was not afraid of the dark.",
            "A little light can make a big dark place feel safe.",
        ),
    ),
    Plot(
        name="sharing a treat",
        words={
            "likes": "good food",
            "treat": "[big cake|apple pie|big cookie|honey cake|berry pie|sweet pear|loaf of warm bread]",
            "place": "[under a tree|by the pond|on a flat rock|near the gate]",
        },
        cases=({"helper": "playmate"}, {"helper": "[duck|goat|hen|frog]"}),
        trouble=(
            (
                "{When}, {hero} had {a treat}. It smelled so good! {He} wanted to eat it all alone, so {he} sat down "
                "{place}."
            ),
            (
                '{When}, Grandma gave {hero} {a treat}. "Yum!" said {hero}. "This is all for me!" {He} sat down '
                "{place} to eat it."
            ),
        ),
        attempt=(
            (
                'Then {friend} came by. "I am so hungry," said {friend}. "May I have some?" {Hero} hid the {treat}. '
                '"No," {he} said. "It is mine." {Friend} walked away slowly.'
            ),
            (
                '{Friend} came and looked at the {treat}. "That looks good," said {friend}. {Hero} did not say a '
                "word. {Friend} was sad and walked away."
            ),
        ),
        turn=(
            (
                "{Hero} took one bite. But it did not taste as good as before. {He} saw {friend}, all alone, and {he} "
                "felt bad."
            ),
            "{Hero} ate a little bit, all alone. It was too quiet. It was no fun at all.",
        ),
        ending=(
            (
                '"[Wait|Come back]!" called {hero}. {He} cut the {treat} in two and gave {friend} the big half. They '
                "ate and laughed together."
            ),
            (
                'So {hero} ran after {friend}. "I am sorry," {he} said. "Let us share my {treat}." {Friend} smiled, '
                "and they sat down {place} and ate it all up."
            ),
        ),
        lesson=(
            "The {treat} tasted much better now.",
            "{Hero} learned that it is good to share.",
            "Food tastes best with a friend.",
        ),
    ),
    Plot(
        name="a toy breaks",
        without=("mouse",),
        words={
            "likes": "[to build things|to play with toys]",
            "toy": "[toy boat|toy truck|red wagon|wooden duck|toy train|little plane]",
            "part": "wheel",
            "bump": "[a big stone|the wall|a tree|the table]",
        },
        cases=(
            {"helper": "grandparent", "fix": "got some glue and a little brush"},
            {"helper": "[beaver|woodpecker]", "fix": "made a new piece out of wood"},
            {"helper": "mouse", "fix": "found a tiny nail and some string"},
            {"helper": "toymaker", "fix": "opened a big box of tools"},
        ),
        trouble=(
            (
                "{When}, {hero} played with {his} {toy}. {He} went fast, and faster, and then, crash! The {toy} hit "
                "{bump} and broke."
            ),
            (
                "{When}, {hero} was running with {his} {toy}. {He} did not look, and {he} fell. Crack! The {toy} was "
                "broken."
            ),
        ),
        attempt=(
            "{Hero} tried to put it together, but the pieces fell down again. {He} started to cry.",
            '{He} pushed the pieces together, but it did not work. "My poor {toy}!" said {hero}.',
        ),
        turn=(
            (
                'Then {friend} saw the {toy}. "I think we can fix it," said {friend}. {Friend} {fix}. {Hero} held the '
                "pieces very still."
            ),
            (
                '{Hero} took the pieces to {friend}. "Can you fix my {toy}?" {he} asked. "We can try," said {friend}. '
                "{Friend} {fix}, and they worked together."
            ),
        ),
        ending=(
            'Soon the {toy} was as good as new. "Hooray!" said {hero}. {He} let {friend} play with it first.',
            "At last the {toy} was whole again. It had a little mark on it now, and {hero} liked it even more.",
        ),
        lesson=(
            "{Hero} was very careful with the {toy} after that.",
            "{Hero} learned that broken things can be fixed.",
        ),
    ),
    Plot(
        name="two want the same thing",
        words={
            "likes": "the playground",
            "thing": "[swing|red ball|slide|little boat|jump rope|drum|blue bike]",
            "place": "[playground|park|garden|yard]",
            "friend_trait": "[little|funny|small]",
        },
        trouble=(
            (
                '{When}, {hero} saw a {thing} in the {place}. {He} ran to it. But {friend} ran to it too. "I was '
                'first!" said {hero}. "No, I was first!" said {friend}.'
            ),
            (
                '{When}, {hero} and {friend} were in the {place}. They both wanted the {thing}. "It is my turn!" said '
                '{hero}. "No, mine!" said {friend}.'
            ),
        ),
        attempt=(
            "They pulled and they pushed. Then they both fell down, plop, right in the mud!",
            "They shouted and shouted. {Hero} was angry. {Friend} was angry too. Nobody had any fun.",
        ),
        turn=(
            (
                "{Hero} looked at {friend}. {Friend} looked at {hero}. They looked so funny that they began to laugh. "
                '"You can go first," said {hero}.'
            ),
            (
                'Then {hero} had an idea. "Let us take turns," {he} said[| with a smile]. "I will count to ten, and '
                'then it is my turn." {Friend} nodded.'
            ),
            (
                'Then {hero} took a deep breath. "I am sorry," {he} said. "Do you want to play together?" {Friend} '
                "smiled and said yes."
            ),
        ),
        ending=(
            (
                "First {friend} had the {thing}, and then {hero} had the {thing}. They played until it was time to go "
                "home."
            ),
            "So they took turns with the {thing}, and they laughed and laughed. It was much more fun with two.",
        ),
        lesson=(
            "{Hero} and {friend} were best friends from that day on.",
            "They learned that taking turns is fun.",
        ),
    ),
    Plot(
        name="a little one cannot find its mother",
        words={
            "likes": "to help",
            "baby": "[duckling|lamb|chick|bunny|kitten]",
            "place": "[by the pond|under a bush|near the fence|on the path]",
        },
        cases=(
            {"baby": "duckling", "call": "Quack, quack", "mother": "[by the pond|in the tall grass]"},
            {"baby": "lamb", "call": "Baa, baa", "mother": "[on the green hill|by the barn]"},
            {"baby": "chick", "call": "Cluck, cluck", "mother": "[behind the barn|in the farm yard]"},
            {"baby": "calf", "call": "Moo, moo", "mother": "[by the red barn|in the big field]"},
        ),
        without=("lamb", "fox", "tiger", "bear"),
        trouble=(
            (
                '{When}, {hero} heard a small cry. It was a baby {baby}, all alone. "I cannot find my mom," said the '
                "{baby}."
            ),
            (
                '{When}, {hero} went for a walk and found a little {baby}. The {baby} was crying. "I am lost," it '
                'said. "I want my mom."'
            ),
        ),
        attempt=(
            (
                '"Do not cry," said {hero}. "I will help you." They looked behind the big tree, but nobody was there. '
                "They looked near the old well, but nobody was there."
            ),
            (
                "{Hero} sat down next to the {baby} and sang a little song. Then they walked and walked, but they did "
                "not see the mother."
            ),
        ),
        turn=(
            (
                '"[Shh|Wait]," said {hero}. "Let us be very quiet and listen." They listened. "{Call}!" It came from '
                "far away."
            ),
            (
                'Then {hero} had an idea. "Call as loud as you can," {he} said. So the {baby} called. And soon they '
                'heard, "{Call}!"'
            ),
        ),
        ending=(
            (
                "They [ran|hurried] to the sound. There was the mother, {mother}! The {baby} ran as fast as it could. "
                "They were both so happy."
            ),
            (
                'And there, {mother}, it saw a happy face! "My baby!" said the mother. "Thank you, {hero}. You are '
                'very kind."'
            ),
        ),
        lesson=(
            "{Hero} smiled all the way home, and gave {his} own mom a big hug.",
            "The little {baby} waved, and {hero} waved back.",
            "It feels good to help somebody small.",
        ),
    ),
    Plot(
        name="rain and one small roof",
        heroes=("animal",),
        without=("duckling", "otter", "beaver", "elephant", "tiger", "bear", "pony", "panda"),
        words={
            "likes": "dry, warm days",
            "weather": "cloudy",
            "roof": "[mushroom|big green leaf|yellow flower|old umbrella]",
        },
        cases=({"helper": "[ant|butterfly|snail|beetle|ladybug]"}, {"helper": "[mouse|sparrow|cricket]"}),
        trouble=(
            (
                "{When}, it began to rain. Drip, drop, drip, drop! {Hero} did not want to get wet. {He} ran and found "
                "{a roof} and sat under it."
            ),
            (
                "{When}, {hero} was far from home when the rain came down. {He} found {a roof} and hid under it. It "
                "was small, but it was dry."
            ),
        ),
        attempt=(
            (
                'Then {friend} came, all wet and cold. "Please, may I come in?" asked {friend}. {Hero} looked at the '
                "{roof}. It was so small!"
            ),
            (
                'Soon {friend} came, too. "I am so wet," said {friend}. "Is there room for me?" {Hero} did not know. '
                "There was so little room."
            ),
        ),
        turn=(
            (
                '"Yes," said {hero}. "We can sit close together." So {friend} came in. They sat side by side, and it '
                "was warm."
            ),
            (
                '{Hero} moved a little to the left, and then a little more. "Now there is room," {he} said. {Friend} '
                "sat down next to {him}."
            ),
        ),
        ending=(
            (
                "They [sang a rain song|hummed a little song|counted the drops] under the {roof}, and soon the sun "
                "came out. There was a big rainbow in the sky."
            ),
            (
                "They told each other [funny|silly|long] stories until the rain stopped. Then they ran out from under "
                "the {roof} and jumped in the puddles."
            ),
        ),
        lesson=(
            "There is always room for a friend.",
            "{Hero} was glad that it had rained, because now {he} had a new friend.",
        ),
    ),
    Plot(
        name="learning to do something hard",
        without=("otter",),
        cases=(
            {
                "skill": "ride a bike",
                "oops": "fell in the grass",
                "tip": "Look where you want to go",
                "helper": "parent",
                "likes": "to go fast",
            },
            {
                "skill": "whistle",
                "oops": "made only a funny puff",
                "tip": "Make your mouth very small",
                "helper": "[robin|sparrow|wren]",
                "likes": "music",
            },
            {
                "skill": "jump over the stream",
                "oops": "fell in with a big splash",
                "tip": "Run first, and then jump",
                "helper": "[frog|deer|goat]",
                "likes": "to run and jump",
            },
            {
                "skill": "swim",
                "oops": "got water in {his} nose",
                "tip": "Kick, kick, kick, and do not stop",
                "helper": "[duck|otter|frog]",
                "likes": "the cool water",
            },
            {
                "skill": "skate on the ice",
                "oops": "slid and sat down hard",
                "tip": "Take very small steps",
                "helper": "penguin",
                "likes": "the winter",
                "weather": "cold",
            },
            {
                "skill": "draw a cat",
                "oops": "drew something that looked like a potato",
                "tip": "Start with the ears",
                "helper": "[teacher|painter]",
                "likes": "to draw",
            },
            {
                "skill": "dance",
                "oops": "fell over {his} own feet",
                "tip": "Listen to the music and clap",
                "helper": "[flamingo|goat|teacher]",
                "likes": "music",
            },
        ),
        trouble=(
            '{When}, {hero} wanted to learn to {skill}. "It looks easy," {he} said. {He} tried, but {he} {oops}.',
            (
                "{When}, {hero} saw {friend}. {Friend} could {skill}. {Hero} wanted to do it too. {He} tried, but "
                "{he} {oops}."
            ),
        ),
        attempt=(
            '{He} tried again, and {he} {oops} again. "I will never learn it!" {he} said.',
            "{He} tried two more times. Every time, {he} {oops}. {Hero} wanted to go home.",
        ),
        turn=(
            (
                '"[Do not stop now|Do not give up]," said {friend}. "{Tip}. I will help you." So {hero} tried one '
                "more time."
            ),
            (
                '{Friend} smiled. "I fell down many times too," said {friend}. "{Tip}." {Hero} took a deep breath and '
                "tried again."
            ),
        ),
        ending=(
            'And this time, it worked! "Look at me!" said {hero}. "I can {skill}!" {Friend} clapped and clapped.',
            "This time, {hero} did it! {He} could {skill}! {He} laughed and did it again and again.",
        ),
        lesson=(
            "{Hero} learned to try, and try again.",
            "After that, {hero} and {friend} did it together every day.",
        ),
    ),
    Plot(
        name="waiting for a seed",
        words={
            "likes": "flowers",
            "plant": "[sunflower|apple tree|red rose|pumpkin|bean plant|strawberry plant]",
            "seed": "[tiny|round|little brown]",
        },
        cases=({"helper": "[gardener|farmer]"}, {"helper": "grandparent"}, {"helper": "[worm|bee|ladybug]"}),
        trouble=(
            (
                '{When}, {hero} found a {seed} seed. {He} put it in the ground. "Grow!" {he} said. But the seed did '
                "not grow."
            ),
            (
                "{When}, {friend} gave {hero} a {seed} seed. {Hero} put it in the ground and sat down to wait. "
                "Nothing happened."
            ),
        ),
        attempt=(
            (
                "{He} sang to it. {He} danced for it. {He} even [told it a joke|read it a story|gave it a cookie]. "
                'But there was only dirt. "Why is it so slow?" asked {hero}.'
            ),
            (
                "{He} looked in the morning. {He} looked at noon. {He} looked at night. There was nothing but dirt, "
                "and {hero} was sad."
            ),
        ),
        turn=(
            (
                '"Give it water, and give it time," said {friend}. So {hero} gave it water every [day|morning]. The '
                "sun came, and the rain came[|, and {hero} waited]."
            ),
            (
                '"A seed sleeps before it wakes up," said {friend}. So {hero} gave it a little water, and waited, and '
                "waited."
            ),
        ),
        ending=(
            "Then one morning, there was a tiny green leaf! It grew and grew. At last it was a big, beautiful {plant}.",
            (
                'One day, something green came out of the ground. "Hello!" said {hero}. It grew taller and taller, '
                "and it was {a plant}!"
            ),
        ),
        lesson=(
            "{Hero} learned that good things take time.",
            "{Hero} was so proud of {his} {plant}.",
        ),
    ),
    Plot(
        name="telling the truth",
        heroes=("child", "animal"),
        words={
            "likes": "to run in the house",
            "mess": (
                "[broke the blue cup|broke the pretty vase|spilled the milk|dropped all the eggs|broke the big plate]"
            ),
            "blame": "[the wind|the cat|a ghost|a big bird]",
        },
        without=("kitten",),
        cases=({"helper": "parent"}, {"helper": "grandparent"}),
        trouble=(
            "{When}, {hero} was running in the house. {He} ran too fast and {mess}. Oh no!",
            "{When}, {hero} jumped on the chair. The chair went bump, and {hero} {mess}. What a mess!",
        ),
        attempt=(
            '"Who did this?" asked {friend}. {Hero} looked at the floor. "It was {blame}," {he} said in a small voice.',
            (
                '{Hero} hid behind the door. Then {friend} came in. "What happened here?" asked {friend}. "I think it '
                'was {blame}," said {hero}.'
            ),
        ),
        turn=(
            (
                "But {hero} felt bad. {His} tummy felt like it was full of stones. {He} could not eat, and {he} could "
                "not play."
            ),
            '{Hero} went to {his} room, but {he} did not feel good. A small voice inside {him} said, "Tell the truth."',
        ),
        ending=(
            (
                '"It was not {blame}," said {hero} at last. "It was me. I {mess}. I am sorry." {Friend} gave {him} a '
                'hug. "Thank you for telling me," said {friend}.'
            ),
            (
                'So {hero} went to {friend} and said, "I {mess}. I am so sorry." {Friend} was not angry. They cleaned '
                "the floor together."
            ),
        ),
        lesson=(
            "{Hero} felt light again, and {he} walked very slowly in the house.",
            "{Hero} learned that it is brave to tell the truth.",
        ),
    ),
    Plot(
        name="a birthday that seems forgotten",
        words={
            "likes": "birthdays",
            "gift": "[red bike|blue hat|big drum|little kite|new scarf|toy boat|book of stories]",
            "food": "[chocolate cake|berry pie|honey cake|big cake]",
        },
        trouble=(
            "{When}, {hero} jumped up and down. It was {his} birthday! But nobody said happy birthday.",
            (
                '{When}, {hero} smiled at the sun. "Today is my birthday!" {he} said. But the house was very quiet, '
                "and nobody was there."
            ),
        ),
        attempt=(
            (
                '{He} went to see {friend}. "Do you know what day it is?" asked {hero}. "I have no time now," said '
                "{friend}, and ran away. {Hero} was very sad."
            ),
            (
                '{Hero} met {friend}. "Is today a special day?" asked {hero}. "No," said {friend}. "It is just a '
                "day.\" A tear ran down {hero}'s nose."
            ),
        ),
        turn=(
            'So {hero} walked home slowly. {He} opened the door. It was dark. Then the lights went on. "Surprise!"',
            (
                "In the evening, {hero} went home alone. {He} heard a giggle behind the door. {He} opened it, and "
                'everybody shouted, "Surprise!"'
            ),
        ),
        ending=(
            (
                'All {his} friends were there, with {a food}! {Friend} gave {him} {a gift}. "We did not forget you," '
                "said {friend}."
            ),
            'There was {friend}, with {a gift} for {hero}! There was {a food}, too. "Happy birthday!" they all sang.',
        ),
        lesson=(
            "It was the best birthday ever.",
            "{Hero} laughed and gave everybody the first bite of the {food}.",
        ),
    ),
    Plot(
        name="a strange noise",
        words={"likes": "to look for new things", "friend_trait": "[little|tiny|funny]"},
        cases=(
            {"noise": "Meow, meow", "place": "in the box", "helper": "kitten", "need": "some milk"},
            {"noise": "Ribbit, ribbit", "place": "in the boot", "helper": "frog", "need": "some water"},
            {"noise": "Peep, peep", "place": "under the bed", "helper": "chick", "need": "a warm blanket"},
            {"noise": "Squeak, squeak", "place": "in the hat", "helper": "mouse", "need": "some cheese"},
            {"noise": "Buzz, buzz", "place": "in the cup", "helper": "bee", "need": "a sweet flower"},
            {"noise": "Hoo, hoo", "place": "in the tree house", "helper": "owl", "need": "a quiet place to sleep"},
        ),
        trouble=(
            (
                '{When}, {hero} heard a strange noise. "{Noise}!" It came from something {place}. "[What is that|Who '
                'is there]?" asked {hero}.'
            ),
            (
                '{When}, {hero} was playing when {he} heard something. "{Noise}!" There was something {place}. {Hero} '
                "was a little scared."
            ),
        ),
        attempt=(
            (
                "{Hero} took one step. Then {he} took one step back. Maybe it was a monster! {His} heart went boom, "
                "boom, boom."
            ),
            '"Go away, monster!" said {hero}. But the noise did not go away. "{Noise}!"',
        ),
        turn=(
            "{Hero} was brave and looked {place}. It was not a monster at all. It was {friend}!",
            "Very slowly, {hero} went to look {place}. And what did {he} see? {Friend}!",
        ),
        ending=(
            (
                '"I was so scared of you," said {friend}. "And I was scared of you!" said {hero}. They laughed. '
                "{Hero} gave {friend} {need}."
            ),
            (
                '"Please help me," said {friend}. "I need {need}." So {hero} gave {friend} {need}, and they played '
                "all day."
            ),
        ),
        lesson=(
            "Now {hero} had a new friend, and {he} was not so scared of strange noises.",
            "Sometimes a monster is only a friend you do not know yet.",
        ),
    ),
    Plot(
        name="small helps big",
        heroes=("animal",),
        without=("elephant", "tiger", "pony", "panda"),
        words={"likes": "to help", "trait": "[tiny|very small|little]"},
        cases=(
            {
                "helper": "[bear|lion|elephant]",
                "woe": "had a thorn in {friend.his} foot",
                "fix": "pulled the thorn out with {his} {hands}",
            },
            {
                "helper": "[bear|cow|elephant]",
                "woe": "had {friend.his} foot in an old rope",
                "fix": "bit the rope with {his} teeth until it broke",
            },
            {
                "helper": "[horse|cow|lion]",
                "woe": "lost {friend.his} bell in a deep hole",
                "fix": "went down into the hole and came back with the bell",
            },
        ),
        trouble=(
            '{When}, {hero} heard a loud cry. It was {friend}. {Friend} {woe}. "Help!" cried {friend}.',
            "{When}, {hero} met {friend}. {Friend} was very big, but {friend.he} was crying. {Friend} {woe}.",
        ),
        attempt=(
            '"I can help you," said {hero}. {Friend} looked down. "You?" said {friend}. "But you are so small!"',
            (
                '"Let me help," said {hero}. {Friend} laughed through {friend.his} tears. "How can you help me? You '
                'are too little."'
            ),
        ),
        turn=(
            '"I am small, but I can try," said {hero}. {He} worked and worked. {He} {fix}.',
            "But {hero} did not go away. {He} {fix}. It was not easy, but {he} did it.",
        ),
        ending=(
            '"Oh, thank you!" said {friend}. "You are small, but you are a big help." {Hero} smiled a big smile.',
            (
                '{Friend} was so happy. {Friend} let {hero} ride home on {friend.his} back. "I can see the whole '
                'world!" said {hero}.'
            ),
        ),
        lesson=(
            "Even a small friend can be a big help.",
            "From then on, {friend} and {hero} went everywhere together.",
        ),
    ),
    Plot(
        name="wanting the moon",
        words={
            "likes": "to look at the sky",
            "bowl": "[bowl of water|bucket of water|little puddle|blue pond]",
        },
        cases=({"helper": "grandparent"}, {"helper": "[owl|frog|cat]"}),
        without=("kitten",),
        trouble=(
            (
                "{Night}, {hero} looked up at the sky. The moon came out, and it was round and [bright|yellow|white]. "
                '"I want the moon," said {hero}.'
            ),
            (
                "{Night}, {hero} stayed up late and saw the big, round moon. It was so pretty that {he} wanted to "
                "hold it in {his} {hands}."
            ),
        ),
        attempt=(
            "{He} stood on a chair and reached up. {He} jumped on the bed. But the moon was too far away.",
            '{He} called, "Come down, moon!" {He} held out some bread for it. But the moon did not come down.',
        ),
        turn=(
            (
                '{Friend} came to {him}. "I know where you can find the moon," said {friend}. "Come with me, and '
                'bring the moon a smile." They went to a {bowl}.'
            ),
            '"The moon is too big for a house," said {friend}. "But it can come to visit you. Look into this {bowl}."',
        ),
        ending=(
            (
                "{Hero} looked down, and there was the moon, in the {bowl}! {He} smiled at it, and the moon seemed to "
                "smile back."
            ),
            'And there in the {bowl} was a little moon! "Hello, moon," said {hero}. Then {he} yawned and went to bed.',
        ),
        lesson=(
            "{Hero} dreamed of the moon all night.",
            '"Good night, moon," said {hero}. "See you tomorrow."',
        ),
    ),
    Plot(
        name="a fish is in trouble",
        heroes=("sea",),
        without=("octopus", "crab"),
        words={
            "likes": "to swim with {his} friends",
            "weather": "quiet",
            "thing": "[shiny shell|old bottle|gold ring|red stone]",
        },
        cases=(
            {
                "helper": "crab",
                "fix": "cut the green plant with {friend.his} strong claws",
                "trap": "a long green plant",
            },
            {"helper": "octopus", "fix": "lifted the stone with all eight arms", "trap": "a heavy stone"},
            {"helper": "whale", "fix": "pushed the old boat with {friend.his} big nose", "trap": "an old boat"},
        ),
        trouble=(
            "{When}, {hero} saw {a thing} on the sand. {He} swam down to get it. But {he} got stuck under {trap}!",
            (
                "{When}, {hero} was playing in the water. {He} saw {a thing} and swam to it very fast. Then {he} "
                "could not move. {He} was stuck under {trap}."
            ),
        ),
        attempt=(
            '{Hero} pulled and pulled, but {he} could not get free. "Help!" called {hero}. "Help me, please!"',
            "{He} pushed with all {his} might. It did not move. A tear fell into the sea.",
        ),
        turn=(
            '{Friend} heard {him}. "Stay still," said {friend}. "I will help you." {Friend} {fix}.',
            'Then {friend} came. "Oh, you poor thing!" said {friend}. So {friend} {fix}.',
        ),
        ending=(
            "{Hero} was free! {He} gave {friend} the {thing} to say thank you. They swam home together.",
            '"I am free!" said {hero}. {He} swam around and around. "This {thing} is for you," {he} told {friend}.',
        ),
        lesson=("A good friend is better than {a thing}.", "{Hero} was more careful after that."),
    ),
    Plot(
        name="learning to fly",
        heroes=("bird",),
        words={"likes": "to look at the clouds", "soft": "[a soft bush|a pile of leaves|the soft grass]"},
        cases=({"helper": "[butterfly|bee|dragonfly]"}, {"helper": "parent"}, {"helper": "goose"}),
        trouble=(
            "{When}, {hero} wanted to fly. {He} stood on a branch and looked down. It was so high! {His} legs shook.",
            (
                '{When}, all the other birds flew away to play. {Hero} could not fly yet. "Wait for me!" {he} called, '
                "but they were gone."
            ),
        ),
        attempt=(
            "{He} moved {his} wings up and down. Flap, flap, flap! Then {he} jumped, and fell into {soft}. Plop!",
            (
                "{He} closed {his} eyes and jumped. Down {he} went, and landed in {soft}. There was a [leaf|flower|"
                "snail] on {his} head."
            ),
        ),
        turn=(
            (
                '{Friend} saw it. "Open your eyes," said {friend}, "and feel the wind. The wind will hold you." '
                "{Hero} went back up."
            ),
            '"That was a good start," said {friend}. "Try again, and do not look down. Look at the sky!"',
        ),
        ending=(
            (
                'This time, {hero} looked at the sky. Flap, flap, flap! "I am flying!" {he} sang. {He} flew around '
                "the tree three times."
            ),
            (
                "So {hero} opened {his} wings and jumped. {He} did not fall. Up, up, up {he} went, over the trees and "
                "over the houses!"
            ),
        ),
        lesson=(
            "{Hero} and {friend} played in the sky until it was time for bed.",
            "You have to fall a little before you can fly.",
        ),
    ),
    Plot(
        name="a snowman needs something",
        words={
            "likes": "the snow",
            "weather": "snowy",
            "hat": "[red hat|green scarf|blue hat|yellow scarf|warm coat]",
        },
        cases=(
            {"helper": "rabbit", "nose": "carrot"},
            {"helper": "[robin|deer]", "nose": "red berry"},
            {"helper": "squirrel", "nose": "round nut"},
        ),
        trouble=(
            "{When}, {hero} made a big snowman. {He} gave it two stones for eyes. But the snowman had no nose.",
            (
                "{When}, {hero} played in the snow. {He} made a snowman, as tall as [a door|a bear|Dad]. But "
                "something was missing. It had no nose!"
            ),
        ),
        attempt=(
            (
                "{Hero} tried a [stick, but it was too long|stone, but it fell off]. {He} tried a [leaf, but it blew "
                "away|cookie, but {he} ate it]."
            ),
            (
                "{Hero} looked for a nose. {He} looked under the snow, but {he} found only an old [spoon. A spoon|"
                "sock. A sock|key. A key] is not a nose!"
            ),
        ),
        turn=(
            (
                "Then {friend} came out of the trees. {Friend} was cold, so {hero} gave {friend.him} {his} {hat}. "
                '"You are kind," said {friend}. "I have something for you." It was a {nose}.'
            ),
            (
                '{Friend} looked at the snowman. "I have a {nose}," said {friend}. "You can have it." {Hero} saw that '
                "{friend} was cold, and gave {friend.him} {his} {hat}."
            ),
        ),
        ending=(
            (
                "{Hero} put the {nose} on the snowman. Now it had a nose! They danced around the snowman, and "
                "{friend} wore the {hat}."
            ),
            (
                "The {nose} was just right. The snowman looked at them and seemed to smile. {Friend} was warm in the "
                "{hat}, and {hero} was happy."
            ),
        ),
        lesson=("If you give a little, you get a lot.", "It was a cold day, but they felt warm inside."),
    ),
)

TINY = Register(
    names=36,
    shapes=(
        "{opening} {trouble}\n\n{attempt} {turn}\n\n{ending} {lesson}",
        "{opening} {trouble} {attempt}\n\n{turn} {ending} {lesson}",
        "{opening}\n\n{trouble} {attempt} {turn}\n\n{ending}[| The end.]",
        "{opening} {trouble} {attempt} {turn} {ending} {lesson}",
    ),
    starts=(
        {
            "opening": (
                "Once upon a time, there was {a trait} {kind} named {hero}. [{He} lived {home}|{Hero} lived {home}|"
                "{He} loved {likes}]."
            ),
            "when": "one [|{weather} ]day",
            "night": "one night",
        },
        {
            "opening": (
                "Once upon a time, there was {a trait} {kind} named {hero}. {He} lived {home}, and {he} loved {likes}."
            ),
            "when": "one [|{weather} ][morning|day]",
            "night": "one night",
        },
        {
            "opening": "Once upon a time, {a trait} {kind} named {hero} lived {home}. {Hero} loved {likes}.",
            "when": "one [|{weather} ]day",
            "night": "one night",
        },
        {
            "opening": (
                "One day, {a trait} {kind} named {hero} woke up early. {He} loved {likes}, and it was {a weather} day."
            ),
            "when": "[that morning|after breakfast]",
            "night": "that night",
        },
        {
            "opening": "{Hero} was {a trait} {kind}. {He} lived {home}. {He} loved {likes}.",
            "when": "one [|{weather} ]day",
            "night": "one night",
        },
        {
            "opening": "There was {a trait} {kind} named {hero} who lived {home}.",
            "when": "one [|{weather} ][day|morning]",
            "night": "one night",
        },
    ),
    words={
        "trait": "[little|little|small|happy|kind|shy|brave|funny|young]",
        "friend_trait": "[kind|little|friendly|wise]",
        "weather": "[sunny|warm|bright]",
        "likes": "[to play|to sing|to run]",
    },
    plots=_PLOTS,
)
