"""Measure nodes, clusters and processes beside the alternatives; see README.md."""

if __name__ == "__main__":
    # Nothing is imported before: multiprocessing runs this file in each process that it
    # starts, and would take longer for it than those that do not.
    from _bridge_main import main

    main()
