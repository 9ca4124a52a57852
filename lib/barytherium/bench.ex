defmodule Barytherium.Bench do
  @moduledoc false
  # The program behind `mix barytherium.bench`.

  alias Barytherium.Bench.{Help, Options, Report}
  alias Barytherium.{Client, Histogram, TestBroker, Text}
  alias Barytherium.Tail.{CommandLine, Login, Signals}

  # Messages that are published together without a rate, and milliseconds to wait if none is due.
  @together 256
  @tick 1

  # RabbitMQ deletes a queue that nobody has used for so many milliseconds. Other brokers ignore the header.
  @headers [{"x-expires", "60000"}]

  # Milliseconds that connecting, a group's receipts, and what is still on its way at the end may take.
  @timeout 30_000
  @rest 10_000

  @doc "Runs the program, and returns its exit status. `command` is its name."
  @spec run([String.t()], String.t()) :: non_neg_integer()
  def run(argv, command), do: CommandLine.run(argv, command, {Options, Help}, &measure/1)

  defp measure(options) do
    with :ok <- touch(options.svg) do
      trapped = Process.flag(:trap_exit, true)

      try do
        run = run(options)
        pairs = for number <- 1..options.connections, do: start_pair(number, run)
        publish(pairs, run)
      catch
        {:failed, text} ->
          CommandLine.complain(text)
          1
      after
        Process.flag(:trap_exit, trapped)
      end
    end
  end

  # Nobody wants to learn this at the end.
  defp touch(nil), do: :ok

  defp touch(path) do
    with {:error, reason} <- File.write(path, "") do
      CommandLine.complain("cannot write to #{Text.line(path)}: #{:file.format_error(reason)}")
      1
    end
  end

  defp run(options) do
    {client, prefix} = broker(options)

    %{
      options: options,
      client: client,
      prefix: prefix,
      counters: :counters.new(2, [:write_concurrency]),
      # Whether the end has come before its time.
      is_over: :atomics.new(1, []),
      times: Histogram.new()
    }
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
  defp start_pair(number, run) do
    {queue, parent} = {"#{run.prefix}-#{number}", self()}
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
      {:error, error} -> failed(parent, Login.failure(error, run.options.target))
    end
  end

  defp failed(parent, text) do
    send(parent, {:failed, self(), Text.block(text)})
    Process.sleep(:infinity)
  end

  defp consumer(queue, parent, run) do
    client = connect(parent, run)

    options = [ack: run.options.ack, prefetch: @together, headers: @headers]

    case Client.subscribe(client, queue, options) do
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
        consume(client, run)

      :close ->
        Client.close(client, @rest)
    end
  end

  defp acknowledge(:auto, _client, _frames), do: :ok
  defp acknowledge(:client, client, frames), do: Client.ack(client, List.last(frames))
  defp acknowledge(:client_individual, client, frames), do: Client.ack(client, frames)

  defp publisher(queue, parent, run) do
    client = connect(parent, run)
    send(parent, {:ready, self()})

    receive do
      {:begin, started, until} -> publish(queue, client, parent, run, {started, until, 0})
    end

    receive do: (:close -> Client.close(client, @rest))
  end

  defp publish(queue, client, parent, run, {started, until, sent}) do
    now = System.monotonic_time(:microsecond)

    if now >= until or :atomics.get(run.is_over, 1) > 0 do
      send(parent, {:published, self()})
    else
      dues = dues(sent, now - started, started, run.options)

      if dues == [],
        do: Process.sleep(@tick),
        else: publish_now(queue, client, parent, run, dues)

      publish(queue, client, parent, run, {started, until, sent + length(dues)})
    end
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
    messages = for due <- dues, do: {queue, [<<due::signed-64>>, rest], @headers}

    case Client.publish_many(client, messages,
           timeout: @timeout,
           persistent: run.options.persistent
         ) do
      :ok -> :counters.add(run.counters, 1, length(dues))
      {:error, error, _left} -> failed(parent, "not confirmed: " <> Exception.message(error))
    end
  end

  defp publish(pairs, %{options: options} = run) do
    # The first signal ends the publishing. What was published by then is consumed, and told.
    Signals.stop_with(&:atomics.put(run.is_over, 1, &1))
    IO.puts(:stderr, "Measuring for #{options.seconds} s ...")
    started = System.monotonic_time(:microsecond)

    for {publisher, _consumer} <- pairs,
        do: send(publisher, {:begin, started, started + options.seconds * 1_000_000})

    seconds = watch(length(pairs), started, run, [])
    published = count(run, 1, started)
    await_rest(run, System.monotonic_time(:millisecond) + @rest)
    consumed = count(run, 2, started)
    close(pairs)
    report(run, published, consumed, seconds)
  end

  # How many there are, and in how many milliseconds that was.
  defp count(run, counter, started) do
    passed = div(System.monotonic_time(:microsecond) - started, 1000)
    {:counters.get(run.counters, counter), max(passed, 1)}
  end

  defp close(pairs) do
    for {publisher, consumer} <- pairs, pid <- [publisher, consumer], do: send(pid, :close)

    for {publisher, consumer} <- pairs, pid <- [publisher, consumer] do
      receive do: ({:EXIT, ^pid, _reason} -> :ok)
    end
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

  defp report(%{options: options} = run, {published, _ms} = both, consumed, seconds) do
    missing = published - elem(consumed, 0)
    parts = for {_name, part} <- Report.quantiles(), do: part

    measured = %{
      published: both,
      consumed: consumed,
      seconds: seconds,
      size: options.size,
      latency: if(options.rate != :infinity, do: Histogram.quantiles(run.times, parts))
    }

    IO.write(if options.json, do: [Report.json(measured), "\n"], else: Report.table(measured))
    if options.svg, do: File.write!(options.svg, Report.svg(measured))

    if missing > 0,
      do: CommandLine.complain("#{missing} messages were not delivered in #{div(@rest, 1000)} s")

    if missing > 0, do: 1, else: :atomics.get(run.is_over, 1)
  end
end
