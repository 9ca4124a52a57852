# Run by script/bench. Options: --rounds N, --time MS, --only NAME (a part of a case's name).

for file <- ~w(payload elixir_loop feed contender), do: Code.require_file("#{file}.ex", __DIR__)

defmodule Bench do
  alias Bench.{Contender, Feed, Payload}

  @parsers Path.expand("target/release/parsers", __DIR__)

  def run(options) do
    options = Map.merge(%{rounds: 5, time: 400, only: ""}, Map.new(options))

    results =
      for {name, case} <- cases(), String.contains?(name, options.only) do
        result = case.(options)
        print(name, result)
        {name, result}
      end

    File.write!(Path.join(__DIR__, "results.tsv"), [tsv_head() | Enum.map(results, &tsv/1)])
  end

  defp cases do
    sizes = [
      {"32 B", 32},
      {"256 B", 256},
      {"1.5 KB", 1_500},
      {"16 KB", 16_384},
      {"1 MB", 1_048_576}
    ]

    plain = for {name, size} <- sizes, do: {name, &end_to_end(&1, Payload.new(size))}

    other = [
      {"256 B, no content-length", &end_to_end(&1, Payload.new(256, :plain, false))},
      {"256 B, RabbitMQ's headers", &end_to_end(&1, Payload.new(256, :rabbitmq))},
      {"256 B, ActiveMQ's headers", &end_to_end(&1, Payload.new(256, :activemq))},
      {"TLS, 1.5 KB", &tls(&1, Payload.new(1_500))},
      {"latency, idle VM", &latency(&1, 0)},
      {"latency, busy VM", &latency(&1, System.schedulers_online())},
      {"latency, paced, idle VM", &paced(&1, 0)},
      {"latency, paced, busy VM", &paced(&1, System.schedulers_online())},
      {"acknowledgements written singly", &writes(&1)},
      {"decoders, 256 B", &decoders(&1, Payload.new(256))},
      {"Frame.parse_all, 256 B", &parse_all(&1, Payload.new(256))},
      {"no listener, 1.5 KB", &backlog(&1, Payload.new(1_500))}
    ]

    many =
      for n <- [10, 100, 1000], do: {"#{n} connections, 256 B", &many(&1, n, Payload.new(256))}

    plain ++ other ++ many
  end

  # One column for each figure of a round; ratios are of the same round.
  defp end_to_end(options, {bytes, frames}) do
    {feed, port} = Feed.start(:flood, bytes)
    size = byte_size(bytes) / frames

    rounds =
      for _round <- 1..options.rounds do
        raw = Contender.measure(:raw, port, options.time)
        ours = Contender.measure(:ours, port, options.time)
        elixir = Contender.measure(:elixir, port, options.time)

        [
          "frames/s": ours.rate,
          "of raw recv": ours.rate * size / raw.rate,
          "x Elixir": ours.rate / elixir.rate,
          "CPU us": ours.cpu,
          "CPU us, Elixir": elixir.cpu,
          allocations: ours.allocations,
          "allocations, Elixir": elixir.allocations
        ]
      end

    Feed.stop(feed)
    rounds
  end

  defp tls(options, {bytes, _frames}) do
    {feed, port} = Feed.start_tls(bytes)
    secure = [secure: true, verify: :verify_none]

    rounds =
      for _round <- 1..options.rounds do
        ours = Contender.measure(:ours, port, options.time, secure)
        elixir = Contender.measure(:elixir, port, options.time, secure)

        [
          "frames/s": ours.rate,
          "x Elixir": ours.rate / elixir.rate,
          "CPU us": ours.cpu,
          "CPU us, Elixir": elixir.cpu
        ]
      end

    Feed.stop(feed)
    rounds
  end

  # A frame, an answer of one octet, the next frame: microseconds there and back.
  defp latency(options, busy),
    do: latency(options, busy, :echo, &Contender.round_trips(&1, &2, 2_000))

  # A frame every millisecond, whether the one before has arrived or not: microseconds from its
  # sending, by the clock of the system, to the listener.
  defp paced(options, busy), do: latency(options, busy, :paced, &Contender.paced(&1, &2, 1_000))

  defp latency(options, busy, mode, measure) do
    {feed, port} = Feed.start(mode, Payload.frame(1, 256, :plain, true), 1)
    burners = for _n <- 1..busy//1, do: spawn(&burn/0)

    rounds =
      for _round <- 1..options.rounds do
        ours = measure.(:ours, port)
        elixir = measure.(:elixir, port)

        [
          "p50 us": at(ours, 0.5),
          "p99 us": at(ours, 0.99),
          "p50 of Elixir's": at(ours, 0.5) / at(elixir, 0.5),
          "p99 of Elixir's": at(ours, 0.99) / at(elixir, 0.99)
        ]
      end

    Enum.each(burners, &Process.exit(&1, :kill))
    Feed.stop(feed)
    rounds
  end

  # Acknowledgements a second, each in a call of its own: with at most 256 of them waiting, and with
  # as many as there are.
  defp writes(options) do
    {feed, port} = Feed.start(:sink, "")

    rounds =
      for _round <- 1..options.rounds do
        [
          "256 waiting": Contender.writes(port, 256, 400),
          "100,000 waiting": Contender.writes(port, 100_000, 1)
        ]
      end

    Feed.stop(feed)
    rounds
  end

  defp burn, do: burn()
  defp at(sorted, quantile), do: Enum.at(sorted, round((length(sorted) - 1) * quantile))

  # All feed at once. Fair is 1.
  defp many(options, count, {bytes, _frames}) do
    {feed, port} = Feed.start(:flood, bytes)

    rounds =
      for _round <- 1..options.rounds do
        one = Contender.measure(:ours, port, options.time)

        rates =
          Contender.measure_many(:ours, port, count, min(max(options.time, 20 * count), 4_000))

        total = Enum.sum(rates)

        [
          "frames/s": total,
          "of one connection": total / one.rate,
          "slowest of fastest": Enum.min(rates) / Enum.max(rates)
        ]
      end

    Feed.stop(feed)
    rounds
  end

  # A listener that takes nothing for a second, with the default high-water mark and without one.
  defp backlog(options, {bytes, _frames}) do
    {feed, port} = Feed.start(:flood, bytes)
    mib = &(Contender.backlog(port, 1_000, &1) / 1_048_576)

    rounds =
      for _round <- 1..options.rounds do
        [MiB: mib.([]), "MiB, no mark": mib.(high_water_mark: :infinity)]
      end

    Feed.stop(feed)
    rounds
  end

  defp decoders(options, {bytes, _frames}) do
    path = Path.join(System.tmp_dir!(), "barytherium-bench-decoders")
    File.write!(path, bytes)
    {output, 0} = System.cmd(@parsers, [path, to_string(options.rounds)])

    for line <- String.split(output, "\n", trim: true) do
      [ours, stomp_parser, async_stomp] = line |> String.split() |> Enum.map(&String.to_integer/1)

      [
        "MB/s": ours / 1_000_000,
        "x stomp-parser": ours / stomp_parser,
        "x async-stomp": ours / async_stomp
      ]
    end
  end

  # Decoding and terms, without a socket, of what one read gives.
  defp parse_all(options, {bytes, _frames}) do
    bytes = binary_part(bytes, 0, 256 * 1024)

    for _round <- 1..options.rounds do
      {ours, frames} =
        time(fn ->
          {:ok, frames, _state} = Barytherium.Frame.parse_all(bytes)
          frames
        end)

      {elixir, _frames} =
        time(fn ->
          {frames, _rest} = Bench.ElixirLoop.parse(bytes, [])
          frames
        end)

      ["us a frame": ours / length(frames), "x Elixir": elixir / ours] ++ rabbitmq(bytes, ours)
    end
  end

  # RabbitMQ's own parser, where it is installed. It is a server's, and reads SEND.
  defp rabbitmq(bytes, ours) do
    case Path.wildcard("/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins/rabbitmq_stomp-*/ebin") do
      [path | _] ->
        :code.add_pathz(to_charlist(path))
        bytes = String.replace(bytes, "MESSAGE\n", "SEND\n")
        {theirs, _rest} = time(fn -> rabbitmq_parse(bytes) end)
        ["x RabbitMQ's": theirs / ours]

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

  # The best of some, in a process of its own, so that nobody pays for another's garbage.
  defp time(fun) do
    runs = for _run <- 1..5, do: Task.await(Task.async(fn -> :timer.tc(fun) end), :infinity)
    Enum.min_by(runs, &elem(&1, 0))
  end

  defp print(name, rounds) do
    figures =
      for {figure, values} <- columns(rounds) do
        {median, low, high} = spread(values)
        "#{figure} #{format(median)} (#{format(low)} to #{format(high)})"
      end

    IO.puts("#{String.pad_trailing(name, 26)} #{Enum.join(figures, ", ")}")
  end

  defp columns(rounds) do
    for {figure, _value} <- hd(rounds), do: {figure, Enum.map(rounds, & &1[figure])}
  end

  defp spread(values) do
    sorted = Enum.sort(values)
    {Enum.at(sorted, div(length(sorted), 2)), hd(sorted), List.last(sorted)}
  end

  defp format(value) when value >= 10_000, do: "#{Float.round(value / 1_000_000, 3)} M"
  defp format(value) when value >= 100, do: to_string(round(value))
  defp format(value), do: to_string(Float.round(value / 1, 2))

  defp tsv_head, do: "case\tfigure\trounds\tmedian\tlowest\thighest\n"

  defp tsv({name, rounds}) do
    for {figure, values} <- columns(rounds) do
      {median, low, high} = spread(values)
      Enum.join([name, figure, length(values), median, low, high], "\t") <> "\n"
    end
  end
end

{options, []} =
  OptionParser.parse!(System.argv(), strict: [rounds: :integer, time: :integer, only: :string])

Bench.run(options)
