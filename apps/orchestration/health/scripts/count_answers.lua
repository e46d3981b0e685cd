-- Adds what a worker has counted, halves what is long ago, and says the p99 of what is enough: as `pace.py` does.
local paces, answers, warm, remembered, fastest, ratio = unpack(ARGV, 1, 6)
for i = 7, #ARGV, 2 do
    local key, all, total = ARGV[i], cjson.decode(redis.call('HGET', answers, ARGV[i]) or '{}'), 0
    for bucket, count in pairs(cjson.decode(ARGV[i + 1])) do
        all[bucket] = (all[bucket] or 0) + count
    end
    for _, count in pairs(all) do
        total = total + count
    end
    local kept, buckets, halves = {}, {}, total >= tonumber(remembered)
    total = 0
    for bucket, count in pairs(all) do
        count = halves and math.floor(count / 2) or count
        if count > 0 then
            kept[bucket], total = count, total + count
            buckets[#buckets + 1] = tonumber(bucket)
        end
    end
    redis.call('HSET', answers, key, cjson.encode(kept))
    table.sort(buckets)
    local wanted = math.ceil(0.99 * total)
    for _, bucket in ipairs(total >= tonumber(warm) and buckets or {}) do
        wanted = wanted - kept[tostring(bucket)]
        if wanted <= 0 then
            redis.call('HSET', paces, key, string.format('%.6g', fastest * ratio ^ bucket))
            break
        end
    end
end
