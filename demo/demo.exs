# Run by script/demo. Options: --seconds N (default: 10), --rate MESSAGES_PER_SECOND (default: 2000).

for file <- ~w(trains board race ../bench/processor),
    do: Code.require_file("#{file}.ex", __DIR__)

defmodule Demo do
  alias Barytherium.Tail.{CommandLine, Report, Signals, Terminal}
  alias Barytherium.{Client, Histogram, TestBroker}
  alias Demo.{Board, Race, Trains}

  # Milliseconds between two pictures of the board, and between two batches of the feed.
  @picture 250
  @batch 10

  # Milliseconds that each side of the race takes.
  @race 1_000

  @destination "/topic/darwin.pushport-v16"

  def main(argv) do
    case OptionParser.parse(argv, strict: [seconds: :integer, rate: :integer]) do
      {opts, [], []} -> run(Map.merge(%{seconds: 10, rate: 2_000}, Map.new(opts)))
      _mistake -> mistake()
    end
  end

  defp mistake do
    IO.puts(
      :stderr,
      "Usage: script/demo [--seconds N] [--rate MESSAGES_PER_SECOND], or script/demo URL, as for mix barytherium.tail"
    )

    2
  end

  defp run(%{seconds: seconds, rate: rate})
       when seconds not in 1..86_400 or rate not in 1..50_000 do
    IO.puts(:stderr, "--seconds is from 1 to 86400, and --rate from 1 to 50000")
    2
  end

  defp run(options) do
    demo = self()

    CommandLine.interruptible(fn ->
      Signals.stop_with(&send(demo, {:signal, &1}))
      show(options)
    end)
  end

  defp show(%{seconds: seconds, rate: rate}) do
    terminal = Terminal.detect(1)
    messages = Trains.messages()
    {:ok, broker} = TestBroker.start_link()
    board = Board.new()
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    {:ok, consumer} = Board.start_link(url: url, init_arg: board)
    TestBroker.await_subscription(broker, @destination)
    feed = spawn_link(fn -> feed(broker, numbered(messages), rate, now(), 0) end)
    [client] = Barytherium.Consumer.clients(consumer)

    IO.puts(
      "A broker in this VM plays an invented feed of trains: XML of 2 to 3 KB, as gzip. A consumer gets it inflated, in two " <>
        "processes, each train in order."
    )

    screen = %{
      terminal: terminal,
      board: board,
      client: client,
      last: sample(board),
      drawn: 0,
      second: now() + 1_000
    }

    ended = watch(screen, now() + seconds * 1_000)
    Process.unlink(feed)
    Process.exit(feed, :kill)
    Supervisor.stop(consumer)
    finish(ended, messages)
  end

  # Each with its train.
  defp numbered(messages),
    do: messages |> Enum.map(&{&1, Trains.uid(:zlib.gunzip(&1))}) |> List.to_tuple()

  # Sends what is due, even if it is late.
  defp feed(broker, messages, rate, started, sent) do
    due = div((now() - started) * rate, 1_000)

    for n <- sent..(due - 1)//1 do
      {body, train} = elem(messages, rem(n, tuple_size(messages)))

      TestBroker.publish(broker, @destination, body, [
        {"SequenceNumber", "#{n}"},
        {"train", train}
      ])
    end

    Process.sleep(@batch)
    feed(broker, messages, rate, started, due)
  end

  defp watch(screen, until) do
    receive do
      {:signal, status} -> {:signal, status}
    after
      max(min(@picture, until - now()), 0) ->
        screen = second(screen)
        if now() >= until, do: :over, else: screen |> draw() |> watch(until)
    end
  end

  # A second is over: what has come in it.
  defp second(screen) do
    if now() < screen.second do
      screen
    else
      sample = sample(screen.board)
      live = [live(screen.last, sample), health(screen.client)]

      unless screen.terminal.live,
        do:
          IO.puts([
            Enum.join(live, "; "),
            "\n",
            Enum.map(Board.sentences(screen.board, 3), &["  ", &1, "\n"])
          ])

      Map.merge(screen, %{last: sample, live: live, second: screen.second + 1_000})
    end
  end

  # The board is drawn over the last one, so it does not flicker.
  defp draw(%{terminal: %{live: false}} = screen), do: screen

  defp draw(screen) do
    live = Map.get(screen, :live, ["...", ""])
    lines = ["" | Board.lines(screen.board)] ++ [""] ++ live ++ ["Ctrl-C ends"]
    up = if screen.drawn > 0, do: "\e[#{screen.drawn}A", else: ""
    IO.write([up, Enum.map(colored(lines, screen.terminal), &["\r\e[K", &1, "\n"])])
    %{screen | drawn: length(lines)}
  end

  defp colored(lines, %{colors: false}), do: lines

  defp colored([empty, title | lines], _terminal) do
    [empty, [IO.ANSI.bright(), title, IO.ANSI.reset()] | Enum.map(lines, &color/1)]
  end

  defp color(line) do
    cond do
      line =~ "on time" -> [IO.ANSI.green(), line, IO.ANSI.reset()]
      line =~ ~r/^C\d/ -> [IO.ANSI.yellow(), line, IO.ANSI.reset()]
      true -> line
    end
  end

  defp sample({_table, counters}) do
    %{
      time: now(),
      messages: :counters.get(counters, 1),
      bytes: :counters.get(counters, 2),
      processor: Bench.Processor.time()
    }
  end

  defp live(before, now) do
    count = now.messages - before.messages
    time = max(now.time - before.time, 1)
    processor = round((now.processor - before.processor) * 1_000_000 / max(count, 1))
    memory = div(:erlang.memory(:total), 1_048_576)

    "#{Report.rate(count, now.bytes - before.bytes, time)}; " <>
      "#{processor} us a message, broker included; #{memory} MiB"
  end

  defp health(client) do
    [%{missing: missing, to_start: to_start}] = Client.feeds(client)
    "99 % within #{Histogram.quantile(to_start, 0.99) || 0} us; #{missing} missing"
  end

  defp finish({:signal, status}, _messages), do: status

  defp finish(:over, messages) do
    IO.puts("\nHow fast can it be? Two seconds without a pause ...")
    {ours, elixir} = Race.run(messages, @race)

    IO.puts(
      "This machine receives and inflates #{round_rate(ours)} of these messages a second, #{times(ours / elixir)} times as " <>
        "many as a straightforward loop in Elixir with :zlib (#{round_rate(elixir)})."
    )

    0
  end

  defp times(factor), do: :erlang.float_to_binary(factor, decimals: 1)

  # To three digits: the others change from run to run.
  defp round_rate(rate) do
    digits = max(length(Integer.digits(round(rate))) - 3, 0)
    unit = Integer.pow(10, digits)
    (round(rate / unit) * unit) |> Report.number()
  end

  defp now, do: System.monotonic_time(:millisecond)
end

Logger.configure(level: :none)
System.halt(Demo.main(System.argv()))
