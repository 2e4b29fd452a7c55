"""Triton's client while a service with keys ends."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.keys import entry, key
from tests.test_server import server
from tests.wire import TABLE


def test_a_client_with_a_key_is_served_until_the_last_and_told_of_the_end(models_dir: Path, tmp_path: Path) -> None:
    path, x = tmp_path / "keys.toml", np.array([[0.5, 1010.0, 3.0]])
    path.write_text(entry("reader", ["infer"]))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("API_KEYS_FILE", str(path)), ("DRAIN_DELAY_S", "3"), ("PLAN", "optimized")):
            patch.setenv(f"GLOW_{name}", value)
        with server("--models", models_dir / f"{TABLE}.pt") as (url, process):
            rows = triton.InferInput("x", x.shape, "FP64").set_data_from_numpy(x)
            client = triton.InferenceServerClient(url.removeprefix("http://"))
            for ask in (
                client.get_server_metadata,
                lambda **others: client.get_model_metadata(TABLE, **others),
                lambda **others: client.get_model_config(TABLE, **others),
                client.get_inference_statistics,
                client.get_model_repository_index,
                lambda **others: client.infer(TABLE, [rows], **others),
            ):
                with pytest.raises(InferenceServerException, match="a key is needed") as error:
                    ask()
                assert error.value.status() == "401"
                assert ask(headers=key("reader"))
            ready = [client.is_model_ready(TABLE), client.is_model_ready(TABLE, headers=key("reader"))]
            assert (client.is_server_live(), client.is_server_ready(), *ready) == (True, True, False, True)
            process.send_signal(signal.SIGTERM)
            while client.is_server_ready():
                time.sleep(0.01)
            assert client.is_server_live()
            assert not client.is_model_ready(TABLE, headers=key("reader"))
            assert client.infer(TABLE, [rows], headers=key("reader")).as_numpy("p_value").size == 1
            client.close()
            process.wait(30)
