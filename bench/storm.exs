# A reconnect storm: many clients lose their broker at the same moment, and it comes back later. Run by
# script/storm. Prints when the clients try to connect, and fails if they try together, if one does not
# come back, or if something is left behind.
defmodule Storm do
  alias Barytherium.{Client, TestBroker}

  # Milliseconds of a line of the histogram.
  @bucket 500

  # The longest wait between two attempts, and what an attempt may take on a busy machine.
  @longest_wait 30_000
  @patience 10_000

  def run(count, seconds) do
    # Each lost connection would be logged.
    Logger.configure(level: :none)
    broker = start_broker(0)
    port = TestBroker.port(broker)
    opts = [url: "stomp://127.0.0.1:#{port}", backoff: {500, @longest_wait}, listener: self()]

    clients =
      for _n <- 1..count do
        {:ok, client} = Client.start_link(opts)
        client
      end

    collect(count, [])
    before = usage()

    GenServer.stop(broker)
    lost = now()
    back = Task.async(fn -> bring_back(port, seconds) end)
    events = collect(count, [])
    {broker, returned} = Task.await(back, :infinity)
    report(count, seconds, events, lost, returned, before)

    Enum.each(clients, &Client.close/1)
    GenServer.stop(broker)
  end

  defp start_broker(port) do
    {:ok, broker} = TestBroker.start_link(port: port)
    # It is killed.
    Process.unlink(broker)
    broker
  end

  defp bring_back(port, seconds) do
    Process.sleep(seconds * 1000)
    {start_broker(port), now()}
  end

  # The attempts to connect until `left` clients are connected: `{result, time}`.
  defp collect(0, attempts), do: Enum.reverse(attempts)

  defp collect(left, attempts) do
    receive do
      {:barytherium, :client, {{:connected, _info}, _client}} ->
        collect(left - 1, [{:connected, now()} | attempts])

      {:barytherium, :client, {{:connection_failure, _reason}, _client}} ->
        collect(left, [{:failed, now()} | attempts])

      {:barytherium, :client, {{:disconnected, _reason}, _client}} ->
        collect(left, attempts)
    after
      2 * @longest_wait -> raise "#{left} clients are not connected"
    end
  end

  defp report(count, seconds, attempts, lost, returned, {processes, memory}) do
    IO.puts("Attempts to connect of #{count} clients whose broker is away for #{seconds} s:")
    most = histogram(attempts, lost)
    {:connected, last} = List.last(attempts)
    {processes_after, memory_after} = usage()
    IO.puts("#{length(attempts)} attempts; at most #{most} in half a second")
    IO.puts("all are back #{last - returned} ms after the broker")
    IO.puts("processes: #{processes} before, #{processes_after} after")
    IO.puts("memory: #{div(memory, 1024)} KiB before, #{div(memory_after, 1024)} KiB after")
    # The first waits are between 250 and 500 ms, so those attempts are in one line.
    check(most <= count + div(count, 4), "the clients try together")
    check(last - returned <= @longest_wait + @patience, "a client came back too late")
    check(processes_after <= processes, "processes are left")
    check(memory_after < memory * 1.2, "memory is left")
  end

  defp check(true, _failure), do: :ok
  defp check(false, failure), do: raise(failure)

  defp histogram(attempts, lost) do
    buckets = Enum.frequencies_by(attempts, fn {_result, time} -> div(time - lost, @bucket) end)
    {last, _count} = Enum.max(buckets)

    for bucket <- 0..last do
      count = Map.get(buckets, bucket, 0)
      seconds = :erlang.float_to_binary(bucket * @bucket / 1000, decimals: 1)
      bar = String.duplicate("#", div(count, 4))
      IO.puts("#{String.pad_leading(seconds, 5)} s #{String.pad_leading("#{count}", 4)} #{bar}")
    end

    buckets |> Map.values() |> Enum.max()
  end

  # Processes, and bytes that are in use after everything was collected.
  defp usage do
    Enum.each(Process.list(), &:erlang.garbage_collect/1)
    {length(Process.list()), :erlang.memory(:processes_used)}
  end

  defp now, do: System.monotonic_time(:millisecond)
end

[count, seconds] = Enum.map(System.argv(), &String.to_integer/1)
Storm.run(count, seconds)
