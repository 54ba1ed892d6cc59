"""Grade one submission: python grade.py gradescope|codabench|classroom FOLDER OUTPUT (course/once.py says what they write)."""

import sys

from course.once import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
