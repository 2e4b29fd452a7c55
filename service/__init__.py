"""The service: artifact -> engine -> HTTP."""

from common.extras import is_command, require

if is_command("service"):
    require("serve", "torch", "fastapi", "pyarrow", "pydantic_settings", "tqdm")
if is_command("service.ray_app"):
    require("ray", "ray")
