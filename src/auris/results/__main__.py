from auris.results.command import main

main()
