# Run by script/bench. Options: --rounds N, --time MS, --only NAME (a part of a case's name), --write (the chart).

for file <-
      ~w(payload elixir_loop splitting_loop feed processor report contender consumers publishers chart),
    do: Code.require_file("#{file}.ex", __DIR__)

defmodule Bench do
  alias Bench.{
    Chart,
    Consumers,
    Contender,
    ElixirLoop,
    Feed,
    Payload,
    Publishers,
    Report,
    SplittingLoop
  }

  @parsers Path.expand("target/release/parsers", __DIR__)

  @sizes [
    {"32 B", 32},
    {"256 B", 256},
    {"1.5 KB", 1_500},
    {"16 KB", 16_384},
    {"1 MB", 1_048_576}
  ]

  @bare_tls Path.expand("target/release/bare_tls", __DIR__)

  @tls "TLS, 1.5 KB"

  def run(options) do
    options = Map.merge(%{rounds: 5, time: 400, only: ""}, Map.new(options))

    results =
      for {name, case} <- cases(), String.contains?(name, options.only) do
        result = case.(options)
        Report.print(name, result)
        {name, result}
      end

    File.write!(Path.join(__DIR__, "results.tsv"), Report.tsv(results))

    if options[:write] do
      names = for {name, _size} <- @sizes, do: name

      File.write!(
        Path.join(__DIR__, "../guides/assets/chart.svg"),
        Chart.svg(results, names ++ [@tls])
      )
    end
  end

  defp cases do
    plain = for {name, size} <- @sizes, do: {name, &end_to_end(&1, Payload.new(size))}
    busy = System.schedulers_online()

    other = [
      {"256 B, no content-length", &end_to_end(&1, Payload.new(256, :plain, false))},
      {"256 B, RabbitMQ's headers", &end_to_end(&1, Payload.new(256, :rabbitmq))},
      {"256 B, ActiveMQ's headers", &end_to_end(&1, Payload.new(256, :activemq))},
      {"256 B, each acknowledged", &acknowledged(&1, Payload.new(256), :each)},
      {"256 B, lists acknowledged", &acknowledged(&1, Payload.new(256), :last)},
      {"consumer, 256 B, each acknowledged", &consumer(&1, Payload.new(256), :each)},
      {"consumer, 256 B, lists acknowledged", &consumer(&1, Payload.new(256), :last)},
      {"consumer, 1.5 KB, each acknowledged", &consumer(&1, Payload.new(1_500), :each)},
      {"consumer, 1.5 KB, work, by key", &keys(&1, Payload.new(1_500))},
      {"TLS, 256 B", &tls(&1, Payload.new(256))},
      {@tls, &tls(&1, Payload.new(1_500))},
      {"TLS, 16 KB", &tls(&1, Payload.new(16_384))},
      {"WebSocket, 256 B", &websocket(&1, 256)},
      {"WebSocket, 1.5 KB", &websocket(&1, 1_500)},
      {"WebSocket, 16 KB", &websocket(&1, 16_384)},
      {"Darwin", &inflated(&1, Payload.darwin())},
      {"latency, idle VM", &latency(&1, 0)},
      {"latency, busy VM", &latency(&1, busy)},
      {"latency, paced, idle VM", &paced(&1, 0)},
      {"latency, paced, busy VM", &paced(&1, busy)},
      {"publishing, 256 B, 20 ms away", &publishing/1},
      {"acknowledgements written singly", &writes(&1)},
      {"decoders, 256 B", &decoders(&1, Payload.new(256))},
      {"Frame.parse_all, 256 B", &parse_all(&1, Payload.new(256))},
      {"no listener, 1.5 KB", &backlog(&1, Payload.new(1_500))}
    ]

    many =
      for n <- [10, 100, 1000], do: {"#{n} connections, 256 B", &many(&1, n, Payload.new(256))}

    plain ++ other ++ many
  end

  # All figures of a round, with ratios to the others of the same round.
  defp compare(options, port, opts \\ []) do
    measured =
      for contender <- [:ours, :elixir, :splitting],
          into: %{},
          do: {contender, Contender.measure(contender, port, options.time, opts)}

    %{ours: ours, elixir: elixir, splitting: splitting} = measured

    [
      "frames/s": ours.rate,
      "x Elixir": ours.rate / elixir.rate,
      "x splitting Elixir": ours.rate / splitting.rate,
      "Elixir, frames/s": elixir.rate,
      "splitting Elixir, frames/s": splitting.rate,
      "CPU us": ours.cpu,
      "CPU us, Elixir": elixir.cpu,
      allocations: ours.allocations,
      "allocations, Elixir": elixir.allocations
    ]
  end

  defp end_to_end(options, {bytes, frames}) do
    size = byte_size(bytes) / frames

    rounds(options, Feed.start(:flood, bytes), fn port ->
      raw = Contender.measure(:raw, port, options.time)
      figures = compare(options, port)

      figures ++
        [
          "of raw recv": figures[:"frames/s"] * size / raw.rate,
          "CPU us, raw recv": raw.cpu * size
        ]
    end)
  end

  defp tls(options, {bytes, frames}) do
    opts = [secure: true, verify: :verify_none]
    size = byte_size(bytes) / frames

    rounds(options, Feed.start_tls(bytes), fn port ->
      figures = compare(options, port, opts)
      through_ssl = Contender.measure(:ours_ssl, port, options.time, opts)
      {bare, 0} = System.cmd(@bare_tls, ["#{port}", "#{options.time}"])
      bare = bare |> String.trim() |> String.to_integer()

      figures ++
        [
          "ours over :ssl, frames/s": through_ssl.rate,
          "CPU of ours over :ssl": figures[:"CPU us"] / through_ssl.cpu,
          "of bare rustls": figures[:"frames/s"] * size / bare
        ]
    end)
  end

  # The same frames over TCP, and each in a message of a WebSocket, as brokers send them.
  defp websocket(options, body) do
    {tcp, plain} = Feed.start(:flood, elem(Payload.new(body), 0))

    figures =
      rounds(options, Feed.start(:websocket, Payload.messages(body)), fn port ->
        web = Contender.measure(:ours, port, options.time, websocket: true)
        ours = Contender.measure(:ours, plain, options.time)
        ["frames/s": web.rate, "of TCP": web.rate / ours.rate, "CPU of TCP": web.cpu / ours.cpu]
      end)

    Feed.stop(tcp)
    figures
  end

  # Compressed bodies: inflated here by the receive loop, and behind the Elixir loops by `:zlib` in the listener.
  defp inflated(options, {bytes, _frames}) do
    rounds(options, Feed.start(:flood, bytes), fn port ->
      ours = Contender.measure(:ours, port, options.time, inflate: true)
      elixir = Contender.measure(:elixir, port, options.time, inflate: true)

      [
        "frames/s": ours.rate,
        "x Elixir": ours.rate / elixir.rate,
        "CPU us": ours.cpu,
        "of Elixir's CPU": ours.cpu / elixir.cpu,
        "listener us": ours.listener,
        "of Elixir's listener": ours.listener / elixir.listener
      ]
    end)
  end

  # All contenders acknowledge through our sender.
  defp acknowledged(options, {bytes, _frames}, which) do
    feed = Feed.start(:acknowledged, bytes)
    rounds(options, feed, &compare(options, &1, acknowledge: which))
  end

  # A `Barytherium.Consumer` and a plain callback process that does the same.
  defp consumer(options, {bytes, _frames}, which) do
    rounds(options, Feed.start(:subscribed, bytes), fn port ->
      bare = Consumers.measure(:bare, which, port, options.time)
      consumer = Consumers.measure(:consumer, which, port, options.time)

      [
        "messages/s": consumer.messages,
        "of a bare callback": consumer.messages / bare.messages,
        "acknowledgements/s": consumer.acknowledgements,
        "of a bare callback's": consumer.acknowledgements / bare.acknowledgements,
        "CPU us": consumer.cpu,
        "CPU us, bare callback": bare.cpu
      ]
    end)
  end

  # A consumer whose callback has work to do, with one handler and with two that share it by a key.
  defp keys(options, {bytes, _frames}) do
    rounds(options, Feed.start(:subscribed, bytes), fn port ->
      one = Consumers.measure(:consumer, {:work, 1}, port, options.time)
      two = Consumers.measure(:consumer, {:work, 2}, port, options.time)

      [
        "messages/s": two.messages,
        "of one handler": two.messages / one.messages,
        "CPU us": two.cpu
      ]
    end)
  end

  # To a broker whose receipts come after 20 ms.
  defp publishing(options) do
    rounds(options, Feed.start(:receipts, "", 20), fn port ->
      waiting = Publishers.measure(:publish_many, port, options.time)
      lists = Publishers.measure(:lists, port, options.time)
      singly = Publishers.measure(:singly, port, options.time)
      in_files = Publishers.measure(:lists, port, options.time, spool: true)
      singly_in_files = Publishers.measure(:singly, port, options.time, spool: true)

      [
        "messages/s, lists": lists,
        "x publish_many": lists / waiting,
        "messages/s, singly": singly,
        "singly x publish_many": singly / waiting,
        "messages/s, lists, in files": in_files,
        "in files x publish_many": in_files / waiting,
        "messages/s, singly, in files": singly_in_files
      ]
    end)
  end

  defp rounds(options, {feed, port}, measure) do
    rounds = for _round <- 1..options.rounds, do: measure.(port)
    Feed.stop(feed)
    rounds
  end

  # A frame, an answer of one byte, the next frame: microseconds there and back.
  defp latency(options, busy),
    do: latency(options, busy, :echo, &Contender.round_trips(&1, &2, 2_000))

  # A frame every millisecond, whether the one before has arrived or not: microseconds from its
  # sending, by the clock of the system, to the listener.
  defp paced(options, busy), do: latency(options, busy, :paced, &Contender.paced(&1, &2, 1_000))

  defp latency(options, busy, mode, measure) do
    burners = for _n <- 1..busy//1, do: spawn(&burn/0)

    rounds =
      rounds(options, Feed.start(mode, Payload.frame(1, 256, :plain, true), 1), fn port ->
        ours = measure.(:ours, port)
        elixir = measure.(:elixir, port)

        [
          "p50 us": Report.quantile(ours, 0.5),
          "p99 us": Report.quantile(ours, 0.99),
          "p50 of Elixir's": Report.quantile(ours, 0.5) / Report.quantile(elixir, 0.5),
          "p99 of Elixir's": Report.quantile(ours, 0.99) / Report.quantile(elixir, 0.99)
        ]
      end)

    Enum.each(burners, &Process.exit(&1, :kill))
    rounds
  end

  defp burn, do: burn()

  # Acknowledgements per second, each in a call of its own: with at most 256 of them waiting, and
  # with as many as there are.
  defp writes(options) do
    rounds(options, Feed.start(:sink, ""), fn port ->
      [
        "256 waiting": Contender.writes(port, 256, 400),
        "100,000 waiting": Contender.writes(port, 100_000, 1)
      ]
    end)
  end

  # All feed at once. In a fair round the slowest is as fast as the fastest.
  defp many(options, count, {bytes, _frames}) do
    time = options.time |> max(20 * count) |> min(4_000)

    rounds(options, Feed.start(:flood, bytes), fn port ->
      one = Contender.measure(:ours, port, options.time)
      {rates, cpu, waits} = Contender.measure_many(:ours, port, count, time)
      total = Enum.sum(rates)

      [
        "frames/s": total,
        "of one connection": total / one.rate,
        "slowest of fastest": Enum.min(rates) / Enum.max(rates),
        "CPU us": cpu,
        "ping p99 us": waits.ping,
        "File.read p99 us": waits.file
      ]
    end)
  end

  # A listener that takes nothing for a second, with the default high-water mark and without one.
  defp backlog(options, {bytes, _frames}) do
    rounds(options, Feed.start(:flood, bytes), fn port ->
      mib = &(Contender.backlog(port, 1_000, &1) / 1_048_576)
      [MiB: mib.([]), "MiB, no mark": mib.(high_water_mark: :infinity)]
    end)
  end

  defp decoders(options, {bytes, _frames}) do
    path = Path.join(System.tmp_dir!(), "barytherium-bench-decoders")
    File.write!(path, bytes)
    {output, 0} = System.cmd(@parsers, [path, to_string(options.rounds)])

    for line <- String.split(output, "\n", trim: true) do
      [ours, async_stomp] = line |> String.split() |> Enum.map(&String.to_integer/1)

      [
        "MB/s": ours / 1_000_000,
        "x async-stomp": ours / async_stomp
      ]
    end
  end

  # Decoding and terms, without a socket, of what one read gives.
  defp parse_all(options, {bytes, _frames}) do
    bytes = binary_part(bytes, 0, 256 * 1024)
    {:ok, frames, _state} = Barytherium.Frame.parse_all(bytes)

    for _round <- 1..options.rounds do
      ours = time(fn -> Barytherium.Frame.parse_all(bytes) end)
      elixir = time(fn -> ElixirLoop.parse(bytes) end)
      splitting = time(fn -> SplittingLoop.parse(bytes, []) end)

      [
        "us a frame": ours / length(frames),
        "x Elixir": elixir / ours,
        "x splitting Elixir": splitting / ours
      ] ++ rabbitmq(bytes, ours)
    end
  end

  # RabbitMQ's own parser, where it is installed. It is a server's, and reads SEND.
  defp rabbitmq(bytes, ours) do
    case Path.wildcard("/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins/rabbitmq_stomp-*/ebin") do
      [path | _] ->
        :code.add_pathz(to_charlist(path))
        bytes = String.replace(bytes, "MESSAGE\n", "SEND\n")
        ["x RabbitMQ's": time(fn -> rabbitmq_parse(bytes) end) / ours]

      [] ->
        []
    end
  end

  defp rabbitmq_parse(bytes) do
    parser = :rabbit_stomp_frame

    case apply(parser, :parse, [bytes, apply(parser, :initial_state, [])]) do
      {:ok, _frame, rest} -> rabbitmq_parse(rest)
      {:more, _state} -> :ok
    end
  end

  # The best of several runs, each in a process of its own, so that no garbage is left from another.
  defp time(fun) do
    timed = fn -> fun |> :timer.tc() |> elem(0) end
    runs = for _run <- 1..5, do: Task.await(Task.async(timed), :infinity)
    Enum.min(runs)
  end
end

{options, []} =
  OptionParser.parse!(System.argv(),
    strict: [rounds: :integer, time: :integer, only: :string, write: :boolean]
  )

# What is ended here is killed, and its reports say nothing.
Logger.configure(level: :none)
Bench.run(options)
