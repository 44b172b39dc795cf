"""The native dialect as `api/app.py` mounts it."""

from __future__ import annotations

from api.dialects.base import DialectApi, Mounted
from api.dialects.native import openapi
from api.dialects.native.activity import ActivityRoutes
from api.dialects.native.activity_frames import LIFECYCLE
from api.dialects.native.bulk.batch import BatchRoutes
from api.dialects.native.bulk.endings import EndingRoutes
from api.dialects.native.bulk.groups import GroupRoutes
from api.dialects.native.bulk.retries import RetryRoutes
from api.dialects.native.frames import NATIVE
from api.dialects.native.multiplex import MultiplexRoutes
from api.dialects.native.routes import GenerationRoutes
from api.streaming.follow import Follow
from broker.broker import Broker
from broker.fanout.activity import Activity


def mount(broker: Broker, follow: Follow) -> Mounted:
    activity = Activity(broker.store.redis, broker.hub, LIFECYCLE)
    routes = [
        *BatchRoutes(broker, follow.access).routes(),
        *RetryRoutes(broker, follow.access).routes(),
        *EndingRoutes(broker, follow.access).routes(),
        *GroupRoutes(broker, follow.access).routes(),
        *GenerationRoutes(broker, follow).routes(),
        *MultiplexRoutes(broker, follow).routes(),
        *ActivityRoutes(follow, activity).routes(),
    ]
    return Mounted(routes, activity.close)


NATIVE_API = DialectApi(NATIVE.name, mount, openapi.paths, openapi.SCHEMAS)
