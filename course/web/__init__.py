"""The website of a course: `./run.sh course serve`."""
