from auris.report.command import main

main()
