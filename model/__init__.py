"""The flow: data -> training -> checkpoint -> exported artifact.

Conventions, stated once for the whole package:

* Forward maps an input to its latent code, ``x -> z``; inverse maps back, ``z -> x``.
* Both directions return a pair ``(output, log_det)``. ``log_det`` is ``log|det d output / d input|`` in nats,
  one number per input, shape ``(B,)``, float64. The inverse's is minus the forward's.
* ``log p(x) = log N(z; 0, I) + sum of log_det`` (change of variables).
* A vector of D features is an image with D channels and one pixel, so one flow serves both.

Shape legend: B batch, C channels, H height, W width, D = C*H*W input dimensions.
"""

from common.extras import is_command, require

if is_command("model"):
    require("train", "torch", "matplotlib", "sklearn", "tensorboard", "pyarrow", "tqdm")
