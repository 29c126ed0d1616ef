"""The subcommands of `sdakd`: a module or package each, with a function of its name and `add_arguments(parser)`."""
