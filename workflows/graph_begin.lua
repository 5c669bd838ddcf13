-- Begin a graph, unless it has begun: after it was sent, or when its run is built again. Stands after graph.lua.
--   KEYS[1]  the graph     KEYS[2]  its set of steps that may start     ARGV[1]  the prefix of results' keys
if redis.call('HGET', KEYS[1], 'begun') ~= '1' then
    begin(KEYS[1], KEYS[2], ARGV[1])
end
