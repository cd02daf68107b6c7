"""Where the towers run: placements, hosts, and what devices send each other."""

from alexnet_jax.model.collectives import TOWER as TOWER
from alexnet_jax.parallel.agreement import agree as agree
from alexnet_jax.parallel.agreement import everyone as everyone
from alexnet_jax.parallel.agreement import failing_together as failing_together
from alexnet_jax.parallel.agreement import share as share
from alexnet_jax.parallel.hosts import prepare_host as prepare_host
from alexnet_jax.parallel.placement import DATA as DATA
from alexnet_jax.parallel.placement import Placement as Placement
from alexnet_jax.parallel.placement import copy_to_host_async as copy_to_host_async
from alexnet_jax.parallel.placement import place as place
from alexnet_jax.parallel.placement import place_near as place_near
from alexnet_jax.parallel.placement import to_host as to_host
