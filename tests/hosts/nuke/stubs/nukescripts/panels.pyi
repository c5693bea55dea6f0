# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
# types-nuke has nothing for nukescripts; this is what Foundry's page on panels documents.
from typing import Any

class PythonPanel:
    def __init__(self, title: str = ..., id: str = ..., scrollable: bool = ...) -> None: ...
    def addToPane(self, pane: Any = ...) -> Any: ...

def registerWidgetAsPanel(widget: str, name: str, id: str, create: bool = ...) -> PythonPanel | None: ...
