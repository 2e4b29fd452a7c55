"""FastAPI and pydantic: a forward pass a request, in the thread pool."""

import os

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

torch.set_num_threads(1)
flow = torch.jit.load(os.environ["PEER_MODEL"])
app = FastAPI()


class Rows(BaseModel):
    inputs: list[list[float]]


class Answer(BaseModel):
    log_likelihood: list[float]


@app.post("/predict")
def predict(rows: Rows) -> Answer:
    with torch.inference_mode():
        log_prob = flow(torch.tensor(rows.inputs, dtype=torch.float64))
    return Answer(log_likelihood=log_prob.tolist())


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
