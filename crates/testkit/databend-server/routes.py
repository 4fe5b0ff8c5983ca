"""The server's HTTP routes: login, queries and their pages, uploads, and what tests ask for.

    front (perhaps TLS): login, faults, counts ──┐
                                                 ├──> Statements ──> engine
    door (plain, for tests): nothing of these ───┘

Pages of a query are kept until it is ended, and so is the query itself for a while: a request that is repeated is
answered again, with nothing done twice.
"""

import asyncio
import base64
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from engine import INTERNAL, EngineSession, Refused
from stages import check, log
from statements import NODE, State, Statement
from values import type_name

VERSION = "1.2.895"
THREADS = 16
QUERIES_KEPT = 1000
UPLOAD_LIMIT = 1 << 34
NOT_ADMITTED = 5100
WAIT_SECONDS, PAGE_ROWS = 10, 10_000
LOGGED_CHARACTERS = 500
FRONT = web.AppKey("front", bool)
RESULT_SETTINGS = {
    "timezone": "UTC",
    "geometry_output_format": "GeoJSON",
    "binary_output_format": "hex",
    "http_json_result_mode": "driver",
}


def failure(status, code, message):
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def progress(rows):
    return {"rows": rows, "bytes": 0}


class Query:
    """A statement that was asked for, and the pages of its answer."""

    def __init__(self, server, statement, pagination, counted):
        self.server, self.statement, self.counted = server, statement, counted
        self.wait = pagination.get("wait_time_secs", WAIT_SECONDS) or 0.05
        self.page_rows = pagination.get("max_rows_per_page") or PAGE_ROWS
        self.began, self.ended = time.monotonic(), asyncio.Event()
        self.fields, self.rows, self.written, self.error = [], [], 0, None
        self.pages, self.told_rows, self.closed = {}, 0, False
        self.task = asyncio.create_task(self.run())

    async def run(self):
        try:
            result = await self.server.in_thread(self.server.statements.run, self.statement, self.counted)
            self.fields, self.rows, self.written = result.fields, result.rows, result.written
        except Refused as refused:
            self.error = refused
        except Exception as error:
            self.error = Refused(INTERNAL, repr(error))
        log_statement(self.statement, self.began, self.error)
        self.ended.set()

    async def page(self, number):
        if number in self.pages:
            return self.pages[number]
        try:
            await asyncio.wait_for(self.ended.wait(), self.wait)
        except TimeoutError:
            pass
        # Another request for this page may have come first.
        if number not in self.pages:
            self.pages[number] = self.next_page(number)
        return self.pages[number]

    def next_page(self, number):
        runs, rows = not self.ended.is_set(), []
        if not runs:
            rows = self.rows[self.told_rows : self.told_rows + self.page_rows]
            self.told_rows += len(rows)
        path = f"/v1/query/{self.statement.query_id}"
        more = runs or self.told_rows < len(self.rows)
        return {
            **self.summary(),
            "session": None if runs else self.statement.state.told(self.statement.query_id),
            "data": rows,
            "next_uri": f"{path}/page/{number + 1}" if more else f"{path}/final",
            "stats_uri": path,
            "final_uri": f"{path}/final",
            "kill_uri": f"{path}/kill",
        }

    def summary(self):
        ended, error = self.ended.is_set(), self.error
        return {
            "id": self.statement.query_id,
            "session_id": self.statement.session_id,
            "node_id": NODE,
            "state": "Running" if not ended else "Failed" if error else "Succeeded",
            "error": {"code": error.code, "message": error.message} if error else None,
            "warnings": [],
            "has_result_set": bool(self.fields),
            "schema": [{"name": field.name, "type": type_name(field)} for field in self.fields],
            "affect": None,
            "result_timeout_secs": 60,
            "settings": RESULT_SETTINGS,
            "stats": {
                "scan_progress": progress(0),
                "write_progress": progress(self.written),
                "result_progress": progress(len(self.rows)),
                "total_scan": progress(0),
                "spill_progress": {"file_nums": 0, "bytes": 0},
                "running_time_ms": (time.monotonic() - self.began) * 1000,
            },
        }

    def end(self):
        """The client wants no more of it."""
        self.rows, self.pages, self.closed = [], {}, True


def log_statement(statement, began, error):
    outcome = f"{error.code}: {error.message}" if error else "ok"
    line = f"{statement.query_id} {time.monotonic() - began:.3f} s {statement.sql[:LOGGED_CHARACTERS]!r}: {outcome}"
    log(line[: 2 * LOGGED_CHARACTERS])


class Server:
    """What front and door share."""

    def __init__(self, statements, stages, logins, faults):
        self.statements, self.stages, self.logins, self.faults = statements, stages, logins, faults
        self.queries = {}
        self.threads = ThreadPoolExecutor(THREADS)

    def application(self, front):
        """The routes; in front of them, at the front, who may come in and what goes wrong."""
        at_front = [self.admit, self.go_wrong] if front else []
        app = web.Application(client_max_size=UPLOAD_LIMIT, middlewares=at_front)
        app[FRONT] = front
        app.add_routes(
            [
                web.get("/health", nothing),
                web.post("/v1/verify", nothing),
                web.post("/v1/session/login", self.log_in),
                web.post("/v1/session/logout", self.log_out),
                web.post("/v1/session/heartbeat", heartbeat),
                web.post("/v1/query", self.query),
                web.get("/v1/query/{id}", self.query_state),
                web.get("/v1/query/{id}/page/{number}", self.query_page),
                web.route("*", "/v1/query/{id}/final", self.query_final),
                web.route("*", "/v1/query/{id}/kill", nothing),
                web.put("/v1/upload_to_stage", self.upload),
                web.put("/v1/streaming_load", self.streaming_load),
                web.put("/_presigned/{ticket}/{path:.*}", self.presigned),
                web.route("*", "/_test/faults", self.test_faults),
                web.route("*", "/_test/statements", self.test_statements),
                web.delete("/_test/sessions", self.test_sessions),
            ]
        )
        return app

    async def in_thread(self, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    # What stands in front of the routes

    @web.middleware
    async def admit(self, request, handler):
        if not request.path.startswith(("/health", "/_test", "/_presigned")):
            refused = self.logins.refusal(request.headers)
            if refused:
                return failure(401, NOT_ADMITTED, f"Authentication failed: {refused}")
        return await handler(request)

    @web.middleware
    async def go_wrong(self, request, handler):
        if request.path.startswith("/_test"):
            return await handler(request)
        sql = request.headers.get("X-DATABEND-SQL")
        if request.path == "/v1/query":
            sql = (await request.json()).get("sql")
        fault = self.faults.hit(request.path, sql)
        if fault is None:
            return await handler(request)
        if fault.kind == "503":
            return web.Response(status=503, text="service unavailable")
        if fault.kind == "error":
            if fault.status is None and request.path == "/v1/query":
                request["injected"] = Refused(fault.code, fault.message)
                return await handler(request)
            return failure(fault.status or 500, fault.code, fault.message)
        if fault.kind == "drop_after":
            await handler(request)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    # Sessions

    def session_of(self, request):
        """The client's session and whether it is new: an id that it keeps as a cookie."""
        known = request.cookies.get("session_id") or request.headers.get("X-DATABEND-SESSION-ID")
        return known or str(uuid.uuid4()), known is None

    def answer(self, request, body, status=200):
        session, new = request["session"]
        response = web.json_response(body, status=status)
        response.headers["X-DATABEND-SESSION-ID"] = session
        if new and request.cookies.get("cookie_enabled"):
            response.set_cookie("session_id", session, path="/")
            response.set_cookie("last_refresh_time", str(int(time.time())), path="/")
        return response

    async def log_in(self, request):
        request["session"] = self.session_of(request)
        asked = await request.json()
        try:
            settings = asked.get("settings") or {}
            await self.in_thread(self.statements.check_login, asked.get("database"), settings)
        except Refused as refused:
            return failure(400, refused.code, refused.message)
        told = {"version": VERSION, "session_id": request["session"][0], "server_max_arrow_result_version": 0}
        return self.answer(request, told)

    async def log_out(self, request):
        await self.in_thread(self.statements.log_out, self.session_of(request)[0])
        return web.json_response({})

    # Queries

    async def query(self, request):
        request["session"] = self.session_of(request)
        asked = await request.json()
        query_id = request.headers.get("X-DATABEND-QUERY-ID") or uuid.uuid4().hex
        query = self.queries.get(query_id)
        if query is None:
            statement = Statement(
                sql=asked["sql"],
                query_id=query_id,
                state=State.of(asked.get("session")),
                session_id=request["session"][0],
                attachment=asked.get("stage_attachment"),
                label=request.headers.get("X-DATABEND-DEDUPLICATE-LABEL"),
                injected=request.get("injected"),
            )
            query = Query(self, statement, asked.get("pagination") or {}, request.app[FRONT])
            self.keep(query)
        return self.answer(request, await query.page(0))

    def keep(self, query):
        self.queries[query.statement.query_id] = query
        if len(self.queries) > QUERIES_KEPT:
            closed = next((id for id, kept in self.queries.items() if kept.closed or kept.error), None)
            self.queries.pop(closed, None)

    def asked_for(self, request, closed=False):
        """The query of the request's path; a closed one only where that is said."""
        query = self.queries.get(request.match_info["id"])
        if query is None or (query.closed and not closed):
            text = json.dumps({"error": {"code": 404, "message": f"query {request.match_info['id']} not found"}})
            raise web.HTTPNotFound(text=text, content_type="application/json")
        return query

    async def query_page(self, request):
        return web.json_response(await self.asked_for(request).page(int(request.match_info["number"])))

    async def query_state(self, request):
        summary = self.asked_for(request).summary()
        return web.json_response({name: summary[name] for name in ("state", "error", "warnings", "stats")})

    async def query_final(self, request):
        query = self.asked_for(request, closed=True)
        told = {**query.summary(), "session": None, "data": [], "next_uri": None}
        query.end()
        return web.json_response(told)

    # Files

    async def upload(self, request):
        request["session"] = self.session_of(request)
        stage = request.headers.get("X-DATABEND-STAGE-NAME") or request.headers.get("stage_name") or "~"
        folder = (request.headers.get("X-DATABEND-RELATIVE-PATH") or "").strip("/")
        files = []
        try:
            await self.in_thread(lambda: check(EngineSession(self.statements.folder).run, stage))
            async for part in await request.multipart():
                place = self.stages.place(stage, f"{folder}/{part.filename}")
                await self.stages.write(part.read_chunk, place)
                files.append(part.filename)
        except Refused as refused:
            return failure(500, refused.code, refused.message)
        told = {"id": str(uuid.uuid4()), "stage_name": stage, "state": "SUCCESS", "files": files}
        return self.answer(request, told)

    async def presigned(self, request):
        place = self.stages.signed.get(request.match_info["ticket"])
        if place is None:
            return web.Response(status=403, text="this address is not signed")
        await self.stages.write(request.content.read, place)
        return web.Response()

    async def streaming_load(self, request):
        """A file in the body and an INSERT that reads it: written down first, then loaded by COPY."""
        request["session"] = self.session_of(request)
        sql = request.headers.get("X-DATABEND-SQL")
        if not sql:
            return failure(400, 400, "Missing required header X-DATABEND-SQL in request")
        query_id = request.headers.get("X-DATABEND-QUERY-ID") or uuid.uuid4().hex
        state = State.of(json.loads(request.headers.get("X-DATABEND-QUERY-CONTEXT") or "null"))
        path = f"client/stream/{uuid.uuid4().hex}"
        place = self.stages.place("~", path)
        size, written = 0, 0
        try:
            async for part in await request.multipart():
                if part.name != "upload":
                    return failure(400, 400, "Invalid field name in form-data: must be 'upload'")
                size += await self.stages.write(part.read_chunk, place)
            statement = Statement(sql.replace("@_databend_load", f"@~/{path}"), query_id, state, request["session"][0])
            # As a server does: it takes the transaction for the load and does not give it back.
            statement.loses_transaction = True
            began = time.monotonic()
            try:
                written = (await self.in_thread(self.statements.run, statement, request.app[FRONT])).written
                log_statement(statement, began, None)
            except Refused as refused:
                log_statement(statement, began, refused)
                told = {"error": {"code": 400, "message": f"Query execution failed: {refused.message}"}}
                return self.with_state(self.answer(request, told, 400), state, query_id)
        finally:
            place.unlink(missing_ok=True)
        told = {"id": query_id, "stats": {"rows": written, "bytes": size}}
        return self.with_state(self.answer(request, told), state, query_id)

    def with_state(self, response, state, query_id):
        told = base64.urlsafe_b64encode(json.dumps(state.told(query_id)).encode()).decode()
        response.headers["X-DATABEND-QUERY-CONTEXT"] = told
        return response

    # Tests

    async def test_faults(self, request):
        if request.method == "POST":
            try:
                self.faults.add(await request.json())
            except ValueError as error:
                return failure(400, 400, str(error))
        elif request.method == "DELETE":
            self.faults.clear()
        return web.json_response(self.faults.told())

    async def test_statements(self, request):
        counts = self.statements.counts
        if request.method == "DELETE":
            self.statements.counts = {}
        return web.json_response(counts)

    async def test_sessions(self, request):
        return web.json_response({"rolled_back": await self.in_thread(self.statements.roll_back_all)})


async def nothing(request):
    return web.json_response({})


async def heartbeat(request):
    return web.json_response({"queries_to_remove": []})
