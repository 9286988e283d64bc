"""Pictures for people: grids of images, field lines and plots."""
