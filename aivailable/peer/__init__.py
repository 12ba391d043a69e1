"""Everything with sockets, processes, files and clocks: it does what the core decides."""
