"""What a request's body may cost this node, before anything is known of its sense.

* `absurd`: bodies that cost too much to parse, refused before.
* `reading`: a body read and parsed.
* `place`: the place beside the loop where large ones are parsed.
"""
