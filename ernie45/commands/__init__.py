"""One module for each command: SUMMARY, EXAMPLES, add_arguments(parser), run(args).

They parse and print; what they do lives in the packages below, imported only when a command runs.
"""
