defmodule Barytherium.Tail.Output do
  @moduledoc false
  # Writes messages to stdout, and everything else to stderr, so that a pipe gets messages only. On a
  # terminal the last line of stdout has the rates. It is erased before anything else is written.
  #
  # A terminal, and a feed that this VM makes itself, get a few of the messages each second. A flood of
  # them could not be read, and Ctrl-C would come after it.

  alias Barytherium.Frame
  alias Barytherium.Tail.{Format, Options, Report, Terminal}

  # Messages a second.
  @readable 5

  @erase "\r\e[K"

  @enforce_keys [:format, :style, :live, :limit]
  # `left` are the messages that may be shown in this second, `hidden` those that were not shown since the
  # last one that was, `hidden_in_all` those that were never shown.
  defstruct @enforce_keys ++ [left: 0, hidden: 0, hidden_in_all: 0, status: ""]

  @type t :: %__MODULE__{
          format: :pretty | :json | :raw,
          style: Format.style(),
          live: boolean(),
          limit: pos_integer() | :infinity,
          left: non_neg_integer() | :infinity,
          hidden: non_neg_integer(),
          hidden_in_all: non_neg_integer(),
          status: String.t()
        }

  @spec new(Options.t(), Terminal.t()) :: t()
  def new(options, terminal) do
    limit = limit(options, terminal)

    %__MODULE__{
      format: options.format,
      style: %{all: options.all, colors: terminal.colors},
      live: terminal.live,
      limit: limit,
      left: limit
    }
  end

  defp limit(%Options{all: false, count: :infinity, format: :pretty} = options, terminal)
       when terminal.live or options.target == nil,
       do: @readable

  defp limit(_options, _terminal), do: :infinity

  @doc "All messages are to be shown: there are few."
  @spec show_all(t()) :: t()
  def show_all(output), do: %{output | limit: :infinity, left: :infinity}

  @doc "How many messages were not shown, and why, as the end of a sentence."
  @spec not_shown(t()) :: String.t()
  def not_shown(%{hidden_in_all: 0}), do: ""

  def not_shown(%{hidden_in_all: hidden}) do
    "; #{Report.plural(hidden, "message")} of them not shown, because at most #{@readable} a second are (--all shows " <>
      "them)"
  end

  @doc "Shows messages. An error means that nobody reads stdout any more."
  @spec messages(t(), [Frame.t()], DateTime.t()) :: {:ok, t()} | {:error, :closed}
  def messages(output, frames, time) do
    {shown, hidden} = split(frames, output.left)
    texts = for frame <- shown, do: Format.message(output.format, frame, time, output.style)
    output = %{output | left: minus(output.left, length(shown))}

    with :ok <- write_messages(output, texts) do
      before = if shown == [], do: output.hidden, else: 0
      count = length(hidden)
      {:ok, %{output | hidden: before + count, hidden_in_all: output.hidden_in_all + count}}
    end
  end

  defp split(frames, :infinity), do: {frames, []}
  defp split(frames, left), do: Enum.split(frames, left)

  defp minus(:infinity, _shown), do: :infinity
  defp minus(left, shown), do: left - shown

  defp write_messages(_output, []), do: :ok

  defp write_messages(output, texts),
    do: write(output.format, [erase(output), hidden(output), texts, output.status])

  defp hidden(%{hidden: 0}), do: []

  defp hidden(%{hidden: hidden, style: style}) do
    text = "... #{Report.plural(hidden, "message")} not shown (--all shows them)"
    [Format.color(text, :yellow, style), "\n\n"]
  end

  @doc "A second is over. `rates` are what the last line of a terminal says."
  @spec second(t(), String.t()) :: t()
  def second(output, rates) do
    status = if output.live, do: [Format.color(rates, :faint, output.style)], else: ""
    if output.live, do: write(:pretty, [@erase, status])
    %{output | left: output.limit, status: status}
  end

  @doc "Says something to the user."
  @spec notice(t(), String.t()) :: t()
  def notice(output, text) do
    write(:pretty, erase(output))
    IO.puts(:stderr, text)
    %{output | status: ""}
  end

  defp erase(%{status: ""}), do: []
  defp erase(_status), do: @erase

  defp write(format, data) do
    case IO.iodata_length(data) do
      0 -> :ok
      _some -> put(format, data)
    end
  end

  # Bytes that are not text pass a device only if it believes in Latin-1.
  defp put(:raw, data) do
    :io.setopts(:standard_io, encoding: :latin1)
    IO.binwrite(:stdio, data)
  rescue
    ErlangError -> {:error, :closed}
  after
    :io.setopts(:standard_io, encoding: :unicode)
  end

  defp put(_format, data) do
    IO.write(:stdio, data)
  rescue
    # The device has ended, because what it wrote to is closed.
    ErlangError -> {:error, :closed}
  end
end
