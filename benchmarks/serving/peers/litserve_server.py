"""LitServe: up to 64 requests a forward pass, in one worker; waiting 1 ms for more spares it an idle loop."""

import os
from typing import Any

import litserve
import torch


class FlowAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.flow = torch.jit.load(os.environ["PEER_MODEL"], map_location=device)

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        return torch.tensor(request["inputs"], dtype=torch.float64)

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return inputs  # requests differ in their number of rows: predict joins them

    def predict(self, x: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode():
            log_prob: torch.Tensor = self.flow(torch.cat(x))
        return list(log_prob.split([len(rows) for rows in x]))

    def unbatch(self, output: list[torch.Tensor]) -> list[torch.Tensor]:
        return output

    def encode_response(self, output: torch.Tensor) -> dict[str, list[float]]:
        return {"log_likelihood": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(FlowAPI(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
