"""Why a flow: four kinds of generative model trained on the same images for the same CPU time, side by side."""
