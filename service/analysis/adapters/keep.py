"""Plain sentences that have nothing to do with a context: to keep, and to measure damage on.

An adapter is fitted to leave the first unchanged, and is measured on the second, which it has not
seen. Code and lists suffer two to four times as much as plain text.
"""

KEEP = (
    "The river was high after three days of rain, and the bridge was closed.",
    "She put the letters into a drawer and went out to feed the hens.",
    "Most of the houses in the village were built more than a hundred years ago.",
    "He has worked at the same bank since he left school.",
    "The train to the coast leaves every hour from the second platform.",
    "In the evening the children played football behind the church.",
    "It took the engineers two years to repair the old tunnel.",
    "My sister plays the piano, but she has never liked to sing.",
    "The museum shows paintings, coins and tools from many parts of the world.",
    "When the war was over, many people returned to their farms.",
    "A small fire started in the kitchen, and nobody was hurt.",
    "The council decided to plant new trees along the main road.",
    "We waited for an hour, but the doctor did not come.",
    "Water boils at a lower temperature on a high mountain.",
    "The company sold its last ship in the spring and closed the office.",
    "There are four rooms on the first floor and a large garden behind the house.",
    "The teacher asked the class to read the next chapter at home.",
    "Snow fell on the hills last night, so the roads are slow this morning.",
    "They bought a used car from a neighbour and drove it across the country.",
    "The book was first printed in a small town and soon became well known.",
)
"""Sentences whose rows the fit leaves unchanged by default."""

COLLATERAL = (
    "The farmer opened the gate, and the sheep ran down to the stream.",
    "Our team lost the first game of the season by two goals.",
    "The new library has a quiet room where students can work.",
    "After dinner he sat by the window and wrote to his brother.",
    "The storm broke several windows and cut the power for a night.",
    "She studied law for five years before she moved to the capital.",
    "The bus was late again, so we walked to the market.",
    "An old clock stood in the corner of the hall and was always wrong.",
    "The scientists measured the depth of the lake at many points.",
    "During the summer the shop is open until eight in the evening.",
    "His grandfather had been a sailor and told long stories about the sea.",
    "The road follows the valley and then climbs to a narrow pass.",
    "The play was a success, and the theatre was full every night.",
    "Nobody knew why the factory had stopped so suddenly.",
    "The king ruled for thirty years and was followed by his daughter.",
    "I could not find my keys this morning, and the door was locked.",
    "Some birds fly south before the winter and come back in the spring.",
    "The committee will meet next week to discuss the price of land.",
    "Bread is made from flour, water, salt and a little time.",
    "The hospital was moved to a larger building near the station.",
)
"""Sentences on which collateral damage is measured. None of them is kept."""
