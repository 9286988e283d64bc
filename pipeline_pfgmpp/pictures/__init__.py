"""Pictures: grids of images, field lines and plots."""
