"""The terminal monitor: `aivailable top`.

* `app`: the program: keys, themes, which screen.
* `main_screen`: the screen that follows the cluster.
* `messages`: what the follower tells the screen.
* `wording`: states, sizes and times for people.
* `widgets`: the areas of the screen.
"""
