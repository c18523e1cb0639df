"""Using trained networks: loading a run, predicting images, exporting to other formats."""
