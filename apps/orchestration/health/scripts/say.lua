-- One source says how a server is; what follows for the server is decided here, by Redis's clock.
--
-- ARGV: server, source (traffic | probe | heartbeat | webhook), status, reason, what the source wants to remember (JSON object),
--       groups of servers (JSON list of lists): how many of them traffic may take out, then their names;
--       how often the source had spoken when it made up its mind, -1: whatever it has said since
-- Gives: {1 if the server's status is another one now, else 0; the status before; the record (JSON)}, or
--        {-1} where traffic has taken out as many of a group as it may, or the source has spoken since
--
-- fleet:health  hash of server → record {status, source, reason, since, returned, sources: {source: {status, reason, at, turn, …}}}
-- fleet:trial:SERVER  hash; when it was last tried, and how often in vain
-- fleet:silent  hash of server → requests that have waited there in vain since its last good answer
-- fleet:failing  hash of server → requests of all workers that have failed there in a row
-- fleet:tallies  hash of server → its good and bad answers of late, in all workers
-- fleet:untold  list of changes {server, before, status, source, reason, at} of which there is no event yet
-- fleet:moved   a number that grows when something has changed that workers decide by
local server, source, status, reason, memory, groups, turn = unpack(ARGV)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local rank = {healthy = 0, degraded = 1, unhealthy = 2}

local function is_out(name)
    local raw = redis.call('HGET', 'fleet:health', name)
    local said = raw and cjson.decode(raw).sources.traffic
    return said and said.status == 'unhealthy'
end

for _, group in ipairs(cjson.decode(groups)) do
    local out = 1
    for i = 2, #group do
        if group[i] ~= server and is_out(group[i]) then
            out = out + 1
        end
    end
    if out > group[1] then
        redis.call('HDEL', 'fleet:tallies', server) -- it is in after all, and its past is forgotten
        return {-1}
    end
end

-- Who has not heard yet that a server is out may still find it degraded: only an answer brings it back.
local was_out = is_out(server)
if source == 'traffic' and status == 'degraded' and was_out then
    status, reason = 'unhealthy', cjson.decode(redis.call('HGET', 'fleet:health', server)).sources.traffic.reason
end
local raw = redis.call('HGET', 'fleet:health', server)
local record = raw and cjson.decode(raw) or {status = 'healthy', source = source, reason = '', since = now, sources = {}}
local said = record.sources[source]
local moved = said == nil or said.status ~= status or said.reason ~= reason
local spoken = said and said.turn or 0
if tonumber(turn) >= 0 and tonumber(turn) ~= spoken then
    return {-1}
end

local told = cjson.decode(memory)
if source == 'traffic' and status == 'unhealthy' and was_out and said.failing_since then
    told.failing_since = math.min(said.failing_since, told.failing_since or said.failing_since)
end
told.status, told.reason, told.at, told.turn = status, reason, now, spoken + 1
record.sources[source] = told

local before = record.status
record.status, record.source, record.reason = 'healthy', source, reason
for _, name in ipairs({'traffic', 'probe', 'heartbeat', 'webhook'}) do
    local other = record.sources[name]
    if other and rank[other.status] > rank[record.status] then
        record.status, record.source, record.reason = other.status, name, other.reason
    end
end
if source == 'traffic' and status == 'healthy' then
    redis.call('DEL', 'fleet:trial:' .. server)
end
if source == 'traffic' and status ~= 'degraded' then
    redis.call('HDEL', 'fleet:silent', server)
    redis.call('HDEL', 'fleet:failing', server)
end
-- Its answers are counted anew when it is back, else it would go out at once again.
if record.status ~= before and before == 'unhealthy' or source == 'traffic' and (status == 'unhealthy' or was_out) then
    redis.call('HDEL', 'fleet:tallies', server)
end
local changed = record.status ~= before
if changed then
    record.since = now
    if before == 'unhealthy' then
        record.returned = now
        redis.call('DEL', 'fleet:trial:' .. server)
    end
    redis.call('RPUSH', 'fleet:untold', cjson.encode({
        server = server, before = before, status = record.status, source = record.source, reason = record.reason, at = now
    }))
    redis.call('LTRIM', 'fleet:untold', -10000, -1)
end
local encoded = cjson.encode(record)
redis.call('HSET', 'fleet:health', server, encoded)
if moved or changed then
    redis.call('INCR', 'fleet:moved')
end
return {changed and 1 or 0, before, encoded}
