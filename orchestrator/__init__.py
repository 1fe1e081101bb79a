"""What does this host kernel cost a guest that owns a device with a huge PCI BAR?"""

from importlib.metadata import version

__version__ = version("vfio-barometer")
