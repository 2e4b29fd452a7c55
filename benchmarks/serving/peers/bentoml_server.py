"""BentoML: adaptive batches of up to 64 rows, in one worker; started by ``bentoml serve bentoml_server:Flow``."""

import os

import bentoml
import numpy as np
import numpy.typing as npt
import torch


@bentoml.service(workers=1)
class Flow:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.flow = torch.jit.load(os.environ["PEER_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            log_prob = self.flow(torch.from_numpy(np.asarray(inputs, np.float64)))
        return np.asarray(log_prob, np.float64)
