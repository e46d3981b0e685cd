-- Takes a tick, and with it the servers whose turn it is, each under a lease. By Redis's clock.
--
-- ARGV: milliseconds of: tick, interval, fast interval, connect interval, discovery interval, lease; the number of
--       suspects; these, whom to probe at once; then all servers to watch
-- Gives: {number of the tick, now, {servers to probe}, {to connect to}, {to ask for their models}}; only {-1, now} when
--        the tick is taken
--
-- fleet:tick:N   taken
-- fleet:probes   hash of server → {probe, connect, learn: when it is due; lease: until when; holder: the tick; began: when
--                it was taken; probed: when the last probe began that has ended}
--
-- A time that lies further ahead than it can have been set was set before the clock went back: it counts as now.
local every, interval, fast, connect, learn, lease = unpack(ARGV, 1, 6)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local number = math.floor(now / every)
if not redis.call('SET', 'fleet:tick:' .. number, 1, 'NX', 'PX', 10000) then
    return {-1, now}
end

local function due(at, furthest)
    return at == nil or at <= now or at > now + furthest
end

-- Those that come together are asked for their models one after the other: so many tasks at once would keep others back.
local function spread(server)
    return math.floor(learn * tonumber(string.sub(redis.sha1hex(server), 1, 4), 16) / 65536)
end

local suspects = tonumber(ARGV[7])
local suspected = {}
for i = 8, 7 + suspects do
    suspected[ARGV[i]] = true
end
local probes, connections, discoveries = {}, {}, {}
for i = 8 + suspects, #ARGV do
    local server = ARGV[i]
    local raw = redis.call('HGET', 'fleet:probes', server)
    local turn = raw and cjson.decode(raw) or {probe = now + fast, connect = now + connect}
    local moved = not (raw and turn.learn)
    turn.learn = turn.learn or now + spread(server)  -- it may have been probed since somebody asked for that
    if due(turn.lease, tonumber(lease)) then
        if suspected[server] or due(turn.probe, math.max(interval, fast)) then
            probes[#probes + 1] = server
            turn.lease, turn.holder, turn.began, moved = now + lease, number, now, true
        elseif due(turn.connect, tonumber(connect)) then
            connections[#connections + 1] = server
            turn.lease, turn.holder, turn.began, moved = now + lease, number, now, true
        end
    end
    if due(turn.learn, tonumber(learn)) then
        discoveries[#discoveries + 1] = server
        turn.learn, moved = now + learn, true
    end
    if moved then
        redis.call('HSET', 'fleet:probes', server, cjson.encode(turn))
    end
end
return {number, now, probes, connections, discoveries}
