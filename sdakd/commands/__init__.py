"""The subcommands of `sdakd`: one module or package each, with `add_arguments(parser)` and `run(args) -> int`."""
