# SPDX-License-Identifier: Apache-2.0
"""The `<shmem>` element by which libvirt plugs a window."""

from xml.etree import ElementTree as ET

from ..interfaces import Plug


def shmem(name: str, plug: Plug, *, bus: int | None, slot: int = 0) -> ET.Element:
    """Return a window's device, at a slot of bus `bus`; None lets libvirt choose."""
    element = ET.Element("shmem", name=name)
    add_element(element, "model", type="ivshmem-doorbell")
    add_element(element, "server", path=str(plug.socket))
    add_element(element, "msi", vectors=str(plug.vectors), ioeventfd="on")
    if bus is not None:
        place = {"domain": "0x0000", "bus": f"{bus:#04x}", "slot": f"{slot:#04x}"}
        add_element(element, "address", type="pci", **place, function="0x0")
    return element


def add_element(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, attributes)


def text(element: ET.Element) -> str:
    """Return the element indented, as virsh prints it."""
    ET.indent(element)
    return ET.tostring(element, encoding="unicode")
