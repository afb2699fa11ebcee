from justimage.cli import main

main()
