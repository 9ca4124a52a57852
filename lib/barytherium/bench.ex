defmodule Barytherium.Bench do
  @moduledoc false
  # The program behind `mix barytherium.bench`.

  alias Barytherium.Bench.{Help, Histogram, Options, Report}
  alias Barytherium.{Client, TestBroker, Text}
  alias Barytherium.Tail.{CommandLine, Login}

  # Messages that are published together without a rate, and milliseconds to wait if none is due.
  @together 256
  @tick 1

  # Milliseconds that connecting, a group's receipts, and what is still on its way at the end may take.
  @timeout 30_000
  @rest 10_000

  @doc "Runs the program, and returns its exit status. `command` is its name."
  @spec run([String.t()], String.t()) :: non_neg_integer()
  def run(argv, command), do: CommandLine.run(argv, command, {Options, Help}, &measure/1)

  defp measure(options) do
    {client, prefix} = broker(options)

    run = %{
      options: options,
      client: client,
      counters: :counters.new(2, [:write_concurrency]),
      times: Histogram.new()
    }

    trapped = Process.flag(:trap_exit, true)

    try do
      pairs = for number <- 1..options.connections, do: start_pair("#{prefix}-#{number}", run)
      publish(pairs, run)
    catch
      {:failed, text} ->
        CommandLine.complain(text)
        1
    after
      Process.flag(:trap_exit, trapped)
    end
  end

  defp broker(%{target: nil}) do
    {:ok, broker} = TestBroker.start_link()
    {[url: "stomp://127.0.0.1:#{TestBroker.port(broker)}"], "/queue/bench"}
  end

  defp broker(%{target: target} = options) do
    name =
      target.destination ||
        "/queue/barytherium-bench-#{Base.encode16(:crypto.strong_rand_bytes(4))}"

    {Login.client(options, Login.passcode(target)), name}
  end

  # A process that publishes and one that consumes, each with a connection. Both wait.
  defp start_pair(queue, run) do
    parent = self()
    consumer = spawn_link(fn -> consumer(queue, parent, run) end)
    await_ready(consumer)
    publisher = spawn_link(fn -> publisher(queue, parent, run) end)
    await_ready(publisher)
    {publisher, consumer}
  end

  defp await_ready(pid) do
    receive do
      {:ready, ^pid} -> :ok
      {:failed, ^pid, text} -> throw({:failed, text})
    after
      @timeout -> throw({:failed, "no answer in #{div(@timeout, 1000)} s"})
    end
  end

  defp connect(parent, run) do
    Process.flag(:trap_exit, true)

    case Login.connect(run.client) do
      {:ok, client, _info} -> client
      {:error, error} -> failed(parent, "cannot connect: " <> Exception.message(error))
    end
  end

  defp failed(parent, text) do
    send(parent, {:failed, self(), Text.line(text)})
    Process.sleep(:infinity)
  end

  defp consumer(queue, parent, run) do
    client = connect(parent, run)

    case Client.subscribe(client, queue, ack: run.options.ack, prefetch: @together) do
      {:ok, _subscription} -> send(parent, {:ready, self()})
      {:error, error} -> failed(parent, "cannot subscribe: " <> Exception.message(error))
    end

    consume(client, run)
  end

  defp consume(client, run) do
    receive do
      {:barytherium, :messages, {frames, _subscription}} ->
        now = System.monotonic_time(:microsecond)

        for %{body: <<due::signed-64, _rest::binary>>} <- frames,
            do: Histogram.add(run.times, now - due)

        :counters.add(run.counters, 2, length(frames))
        acknowledge(run.options.ack, client, frames)
    end

    consume(client, run)
  end

  defp acknowledge(:auto, _client, _frames), do: :ok
  defp acknowledge(:client, client, frames), do: Client.ack(client, List.last(frames))
  defp acknowledge(:client_individual, client, frames), do: Client.ack(client, frames)

  defp publisher(queue, parent, run) do
    client = connect(parent, run)
    send(parent, {:ready, self()})

    receive do:
              ({:begin, started, until} ->
                 publish(queue, client, parent, run, {started, until, 0}))
  end

  defp publish(queue, client, parent, run, {started, until, sent}) do
    now = System.monotonic_time(:microsecond)
    dues = dues(sent, now - started, started, run.options)

    cond do
      now >= until -> send(parent, {:published, self()})
      dues == [] -> Process.sleep(@tick)
      true -> publish_now(queue, client, parent, run, dues)
    end

    if now < until, do: publish(queue, client, parent, run, {started, until, sent + length(dues)})
  end

  # When the messages of the next group were due, in microseconds.
  defp dues(_sent, passed, started, %{rate: :infinity}),
    do: List.duplicate(started + passed, @together)

  defp dues(sent, passed, started, %{rate: rate, connections: connections}) do
    each = rate / connections
    due = min(trunc(passed * each / 1_000_000), sent + @together)
    for number <- sent..(due - 1)//1, do: started + trunc(number * 1_000_000 / each)
  end

  defp publish_now(queue, client, parent, run, dues) do
    rest = :binary.copy("x", run.options.size - 8)
    messages = for due <- dues, do: {queue, [<<due::signed-64>>, rest]}

    case Client.publish_many(client, messages,
           timeout: @timeout,
           persistent: run.options.persistent
         ) do
      :ok -> :counters.add(run.counters, 1, length(dues))
      {:error, error, _left} -> failed(parent, "not confirmed: " <> Exception.message(error))
    end
  end

  defp publish(pairs, %{options: options} = run) do
    started = System.monotonic_time(:microsecond)

    for {publisher, _consumer} <- pairs,
        do: send(publisher, {:begin, started, started + options.seconds * 1_000_000})

    seconds = watch(length(pairs), started, run, [])
    milliseconds = max(div(System.monotonic_time(:microsecond) - started, 1000), 1)
    consumed = :counters.get(run.counters, 2)
    await_rest(run, System.monotonic_time(:millisecond) + @rest)
    report(run, milliseconds, consumed, seconds)
  end

  # The messages that were consumed in each second, until all publishers have ended.
  defp watch(0, _started, _run, seconds), do: Enum.reverse(seconds)

  defp watch(left, started, run, seconds) do
    next = started + (length(seconds) + 1) * 1_000_000

    receive do
      {:published, _pid} -> watch(left - 1, started, run, seconds)
      {:failed, _pid, text} -> throw({:failed, text})
    after
      max(div(next - System.monotonic_time(:microsecond), 1000), 0) ->
        watch(left, started, run, [:counters.get(run.counters, 2) - Enum.sum(seconds) | seconds])
    end
  end

  defp await_rest(run, until) do
    all? = :counters.get(run.counters, 2) >= :counters.get(run.counters, 1)

    unless all? or System.monotonic_time(:millisecond) > until do
      Process.sleep(@tick)
      await_rest(run, until)
    end
  end

  defp report(%{options: options} = run, milliseconds, consumed, seconds) do
    published = :counters.get(run.counters, 1)
    missing = published - :counters.get(run.counters, 2)
    parts = for {_name, part} <- Report.quantiles(), do: part

    measured = %{
      published: published,
      consumed: consumed,
      milliseconds: milliseconds,
      seconds: seconds,
      size: options.size,
      latency: if(options.rate != :infinity, do: Histogram.quantiles(run.times, parts))
    }

    IO.write(if options.json, do: [Report.json(measured), "\n"], else: Report.table(measured))
    if options.svg, do: File.write!(options.svg, Report.svg(measured))

    if missing > 0,
      do: CommandLine.complain("#{missing} messages were not delivered in #{div(@rest, 1000)} s")

    if missing > 0, do: 1, else: 0
  end
end
