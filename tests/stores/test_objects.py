"""The object stores against their contract, and S3 against a network that breaks."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import pickle
import random
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore import exceptions as boto
from pydantic import SecretStr

from tests.stores.contract_objects import ObjectStoreContract, fetched, put
from tests.stores.faulty_proxy import Fault, FaultyProxy, http_answer
from tiering import errors
from tiering.settings import Settings
from tiering.stores.directory import DirectoryObjects
from tiering.stores.objects import PART_BYTES, S3Objects
from tiering.stores.objects_errors import BY_CLASS, translate

# Mistakes of a caller or of a configuration file: nothing a running store can answer. A class that is new in botocore
# makes the test below fail until someone has put it here or given it a row of its own.
BY_MISTAKE = """
AliasConflictParameterError ApiVersionNotFoundError AwsChunkedWrapperError BaseEndpointResolverError BotoCoreError
ConfigNotFound ConfigParseError DataNotFoundError EndpointProviderError EndpointResolutionError EndpointVariantError
InfiniteLoopConfigError InvalidChecksumConfigError InvalidConfigError InvalidDNSNameError InvalidDefaultsMode
InvalidEndpointConfigurationError InvalidEndpointDiscoveryConfigurationError InvalidExpressionError
InvalidHostLabelError InvalidIMDSEndpointError InvalidIMDSEndpointModeError InvalidMaxRetryAttemptsError
InvalidProxiesConfigError InvalidRegionError InvalidRetryConfigurationError InvalidRetryModeError
InvalidS3AddressingStyleError InvalidS3UsEast1RegionalEndpointConfigError InvalidSTSRegionalEndpointsConfigError
MD5UnavailableError MissingDependencyException MissingParametersError MissingServiceIdError NoRegionError
OperationNotPageableError PaginationError ParamValidationError ProfileNotFound RangeError ServiceNotInRegionError
StubAssertionError StubResponseError UnStubbedResponseError UndefinedModelAttributeError UnknownClientMethodError
UnknownCredentialError UnknownEndpointError UnknownEndpointResolutionBuiltInName UnknownFIPSEndpointError
UnknownKeyError UnknownParameterError UnknownRegionError UnknownServiceError UnknownServiceStyle
UnknownSignatureVersionError UnknownTokenProviderError UnseekableStreamError UnsupportedOutpostResourceError
UnsupportedS3AccesspointConfigurationError UnsupportedS3ArnError UnsupportedS3ConfigurationError
UnsupportedS3ControlArnError UnsupportedS3ControlConfigurationError UnsupportedServiceProtocolsError
UnsupportedSignatureVersionError ValidationError WaiterConfigError
"""


def open_bucket(settings: Settings, bucket: str) -> S3Objects:
    keys = settings.s3_access_key, settings.s3_secret_key
    objects = S3Objects(settings.s3_url, bucket, *keys, settings.s3_region)
    objects.ensure_bucket()
    return objects


@pytest.fixture(scope="module")
def bucket(settings: Settings) -> Iterator[S3Objects]:
    objects = open_bucket(settings, f"objects-{uuid.uuid4().hex[:8]}")
    yield objects
    objects.delete(found.key for found in objects.list())


class TestDirectory(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> DirectoryObjects:
        return DirectoryObjects(tmp_path / "objects")

    def test_a_folder_does_not_pretend_to_lock(self, store: DirectoryObjects) -> None:
        with pytest.raises(errors.PermanentError, match="cannot lock"):
            store.put_new("x", io.BytesIO(b""), 0, hashlib.sha256(b"").hexdigest(), locked_until=datetime.now(UTC))
        assert list(store.list()) == []
        assert not store.is_versioned()

    @pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a//b", ".incoming/x"])
    def test_a_key_stays_in_its_folder(self, store: DirectoryObjects, key: str) -> None:
        with pytest.raises(ValueError, match="not an object key"):
            store.stat(key)


class TestS3(ObjectStoreContract):
    @pytest.fixture
    def store(self, bucket: S3Objects) -> S3Objects:
        return bucket


class TestS3InParts(ObjectStoreContract):
    """The same contract when every object goes up in parts."""

    @pytest.fixture
    def store(self, bucket: S3Objects) -> S3Objects:
        return dataclasses.replace(bucket, whole_bytes_max=0)

    @pytest.mark.skip(reason="SeaweedFS 4.48 checks If-None-Match of a completion without a lock; see WHOLE_BYTES_MAX")
    def test_of_many_writers_at_once_one_wins(self) -> None: ...


@pytest.fixture
def proxy(bucket: S3Objects) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(bucket.endpoint_url)
    yield proxy
    proxy.close()


@pytest.fixture
def shaky(bucket: S3Objects, proxy: FaultyProxy) -> S3Objects:
    """The bucket as seen through the proxy; objects of two parts and more go up in parts."""
    return dataclasses.replace(bucket, endpoint_url=proxy.url, whole_bytes_max=2 * PART_BYTES - 1)


CUT = {"after_bytes": 1_000_000}
ANSWER_500 = {"answer": http_answer("500 Internal Server Error", "InternalError", "we are sorry")}


@pytest.mark.parametrize("fault", [CUT, ANSWER_500], ids=["cut half-way", "answers 500"])
@pytest.mark.parametrize("size", [2_000_000, 2 * PART_BYTES + 5], ids=["whole", "in parts"])
def test_a_broken_upload_leaves_nothing_and_can_be_repeated(
    bucket: S3Objects, shaky: S3Objects, proxy: FaultyProxy, fault: dict[str, int], size: int
) -> None:
    key, data = f"{uuid.uuid4().hex}/x", random.Random(1).randbytes(size)
    with proxy.fault(Fault("up", **fault)) as happened, pytest.raises(errors.StoreUnavailable, match=key) as caught:
        put(shaky, key, data)
    assert happened.struck
    assert caught.value.hint
    assert list(bucket.list(key)) == []
    put(shaky, key, data)
    assert fetched(bucket, key) == data
    bucket.drop_unfinished(datetime.now(UTC) + timedelta(minutes=1))
    assert fetched(bucket, key) == data


@pytest.mark.parametrize("fault", [CUT, ANSWER_500], ids=["cut half-way", "answers 500"])
def test_a_broken_download_is_an_error_and_can_be_repeated(
    bucket: S3Objects, shaky: S3Objects, proxy: FaultyProxy, fault: dict[str, int]
) -> None:
    key, data = f"{uuid.uuid4().hex}/x", random.Random(2).randbytes(8_000_000)
    direction = "down" if fault is CUT else "up"
    put(bucket, key, data)
    with proxy.fault(Fault(direction, **fault)), pytest.raises(errors.StoreUnavailable, match=key):
        fetched(shaky, key)
    assert fetched(shaky, key) == data
    with shaky.open(key) as file:
        with proxy.fault(Fault(direction, **fault)), pytest.raises(errors.StoreUnavailable, match=key):
            file.read(6_000_000)
        file.seek(0)
        assert file.read() == data


def test_one_broken_answer_is_bridged(bucket: S3Objects, shaky: S3Objects, proxy: FaultyProxy) -> None:
    key, data = f"{uuid.uuid4().hex}/x", random.Random(3).randbytes(8_000_000)
    put(bucket, key, data)
    with proxy.fault(Fault("down", after_bytes=3_000_000, times=1)) as happened:
        assert fetched(shaky, key) == data
    assert happened.struck == 1
    with proxy.fault(Fault("down", after_bytes=3_000_000, times=1)) as happened, shaky.open(key) as file:
        assert file.read() == data
    assert happened.struck == 1
    with proxy.fault(Fault("up", after_bytes=3_000_000, times=1)) as happened:
        put(shaky, f"{key}2", data)
    assert happened.struck == 1
    assert fetched(bucket, f"{key}2") == data


@pytest.mark.parametrize(
    ("answer", "family"),
    [
        (http_answer("503 Slow Down", "SlowDown", "reduce your request rate"), errors.Throttled),
        (http_answer("429 Too Many Requests"), errors.Throttled),
        (http_answer("507 Insufficient Storage"), errors.StoreFull),
        (http_answer("500 Internal Server Error", "InternalError", "no writable volumes"), errors.StoreFull),
        (http_answer("403 Forbidden", "QuotaExceeded", "bucket is over its quota"), errors.StoreFull),
        (http_answer("403 Forbidden", "AccessDenied", "no"), errors.AccessDenied),
        (http_answer("409 Conflict", "ConditionalRequestConflict", "two at once"), errors.CommitConflict),
        (http_answer("400 Bad Request", "BadDigest", "other bytes"), errors.CorruptCopy),
    ],
)
def test_an_answer_becomes_the_error_to_react_to(
    shaky: S3Objects, proxy: FaultyProxy, answer: bytes, family: type[errors.TieringError]
) -> None:
    with proxy.fault(Fault(answer=answer)), pytest.raises(family) as caught:
        put(shaky, f"{uuid.uuid4().hex}/x", b"data")
    assert caught.value.operation == "put"
    assert type(pickle.loads(pickle.dumps(caught.value))) is family


def test_a_store_that_is_away_is_unavailable(bucket: S3Objects) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = dataclasses.replace(bucket, endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.raises(errors.StoreUnavailable, match=r"stat s3://.*/x: .*HINT"):
        away.stat("x")


def test_wrong_credentials_are_refused_without_telling_them(bucket: S3Objects) -> None:
    wrong = dataclasses.replace(bucket, secret_key=SecretStr("hunter2hunter2"))
    for attempt in (lambda: wrong.stat("x"), lambda: list(wrong.list()), lambda: put(wrong, "x", b"data")):
        with pytest.raises(errors.AccessDenied, match="TIERING_S3_SECRET_KEY") as caught:
            attempt()
        assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert "hunter2" not in repr(wrong)


def test_a_bucket_that_is_missing_is_named(settings: Settings) -> None:
    keys = settings.s3_access_key, settings.s3_secret_key
    with pytest.raises(errors.NotFound, match="TIERING_LAKE_BUCKET"):
        list(S3Objects(settings.s3_url, "no-such-bucket", *keys).list())


def test_a_changed_byte_is_found_on_the_way_back(bucket: S3Objects) -> None:
    """The hash that `put_new` was given comes back with the object and is checked."""
    key = f"{uuid.uuid4().hex}/x"
    sha256 = hashlib.sha256(b"data").hexdigest()
    bucket._client.put_object(Bucket=bucket.bucket, Key=key, Body=b"dbta", Metadata={"sha256": sha256})
    with pytest.raises(errors.CorruptCopy, match=key):
        bucket.fetch(key, io.BytesIO())


def test_an_upload_nobody_completed_is_dropped(bucket: S3Objects) -> None:
    key = f"{uuid.uuid4().hex}/x"
    upload = bucket._client.create_multipart_upload(Bucket=bucket.bucket, Key=key)["UploadId"]
    bucket._client.upload_part(Bucket=bucket.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"data")
    assert bucket.drop_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert bucket.drop_unfinished(datetime.now(UTC) + timedelta(minutes=1)) == 1


def test_an_upload_under_another_prefix_is_left_alone(bucket: S3Objects) -> None:
    ours, theirs = (f"{uuid.uuid4().hex}/" for _ in range(2))
    for prefix in (ours, theirs):
        bucket._client.create_multipart_upload(Bucket=bucket.bucket, Key=f"{prefix}x")
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert bucket.drop_unfinished(later, prefix=ours) == 1
    assert bucket.drop_unfinished(later, prefix=theirs) == 1, "it was still there"


def test_every_botocore_exception_has_an_answer() -> None:
    classes = [
        found
        for found in vars(boto).values()
        if inspect.isclass(found) and issubclass(found, Exception) and not issubclass(found, Warning)
        if found.__module__ == boto.__name__
    ]
    assert len(classes) > 50
    for found in classes:
        row = next((theirs for theirs, _ in BY_CLASS if issubclass(found, theirs)), None)
        is_client_error = issubclass(found, boto.ClientError)
        assert is_client_error or row is not None, f"{found.__name__}: give it a row in objects_errors.BY_CLASS"
        if row in (boto.BotoCoreError, boto.UndefinedModelAttributeError):
            assert found.__name__ in BY_MISTAKE.split(), f"{found.__name__}: new in botocore? Decide what it means"


def test_an_unknown_answer_is_judged_by_its_status() -> None:
    def judge(status: int) -> type[errors.TieringError]:
        answer = {"Error": {"Code": "Strange"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return type(translate(boto.ClientError(answer, "GetObject"), "get", "x"))

    assert judge(502) is errors.StoreUnavailable
    assert judge(418) is errors.PermanentError
