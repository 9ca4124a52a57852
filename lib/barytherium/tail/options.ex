defmodule Barytherium.Tail.Options do
  @moduledoc false
  # The command line.

  alias Barytherium.Tail.{CommandLine, Target}
  alias Barytherium.Text

  @formats %{"pretty" => :pretty, "json" => :json, "raw" => :raw}

  @switches [
    ack: :boolean,
    all: :boolean,
    cacertfile: :string,
    certfile: :string,
    count: :integer,
    format: :string,
    header: :keep,
    insecure: :boolean,
    keyfile: :string,
    rate: :integer,
    save: :string,
    seconds: :integer,
    size: :integer,
    trace: :boolean
  ]

  # The least and the most of each number. The most are: the longest timer of the VM; more than a feed can
  # send; the default of `max_body`.
  @limits [
    count: {1, :infinity},
    seconds: {1, 4_294_967},
    rate: {1, 1_000_000},
    size: {0, 100 * 1024 * 1024}
  ]

  # A feed in this VM ends by itself, because it is there for trying this out.
  @own_feed_seconds 10

  defstruct target: nil,
            destinations: [],
            headers: [],
            format: :pretty,
            ack: false,
            all: false,
            cacertfile: nil,
            certfile: nil,
            count: :infinity,
            insecure: false,
            keyfile: nil,
            rate: 20_000,
            save: nil,
            seconds: :infinity,
            size: 256,
            trace: false

  @type t :: %__MODULE__{
          target: nil | Target.t(),
          destinations: [String.t()],
          headers: Barytherium.Frame.frame_headers(),
          format: :pretty | :json | :raw,
          ack: boolean(),
          all: boolean(),
          cacertfile: nil | String.t(),
          certfile: nil | String.t(),
          count: pos_integer() | :infinity,
          insecure: boolean(),
          keyfile: nil | String.t(),
          rate: pos_integer(),
          save: nil | String.t(),
          seconds: pos_integer() | :infinity,
          size: non_neg_integer(),
          trace: boolean()
        }

  @type reason ::
          CommandLine.reason()
          | {:format, String.t()}
          | {:destination, String.t()}
          | :no_destination

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, reason()}
  def parse(argv), do: CommandLine.parse(argv, @switches, &check/2)

  defp check(opts, arguments) do
    with {:ok, format} <- format(opts[:format] || "pretty"),
         {:ok, headers} <- CommandLine.headers(opts, :subscribe),
         :ok <- CommandLine.within(opts, @limits),
         {:ok, from} <- source(arguments),
         :ok <- CommandLine.tls(opts, from[:target]) do
      given = opts |> Keyword.drop([:header, :format]) |> Map.new()
      options = struct!(__MODULE__, Map.merge(from, given))
      {:ok, %{options | format: format, headers: headers}}
    end
  end

  defp format(name) do
    with :error <- Map.fetch(@formats, name), do: {:error, {:format, name}}
  end

  defp source([]), do: {:ok, %{destinations: ["/topic/feed"], seconds: @own_feed_seconds}}

  defp source([url | more]) do
    with {:ok, target} <- CommandLine.target(url),
         {:ok, destinations} <- destinations(List.wrap(target.destination) ++ more),
         do: {:ok, %{target: target, destinations: destinations}}
  end

  defp destinations([]), do: {:error, :no_destination}

  # A second URL would otherwise be subscribed to.
  defp destinations(names) do
    case Enum.find(names, &(&1 == "" or String.contains?(&1, "://"))) do
      nil -> {:ok, Enum.uniq(names)}
      name -> {:error, {:destination, name}}
    end
  end

  @doc "The reason as a sentence. What could be a password is not in it."
  @spec message(reason()) :: String.t()
  def message({:format, name}),
    do: "--format is pretty, json or raw, and not #{Text.line(name)}"

  def message({:header, text}) do
    "--header is NAME:VALUE, and none of those that are set anyway (id, destination, ack, receipt): " <>
      Text.line(text)
  end

  def message({:outside, name, value} = reason) do
    {_least, most} = @limits[name]
    limit = if value > most, do: ": it is at most #{most}", else: ""
    CommandLine.message(reason) <> limit
  end

  def message({:destination, name}) do
    # A second URL may contain a password.
    shown = String.replace(name, ~r{//[^/]*@}, "//...@")
    "this is not a destination, and only the first argument is a URL: #{Text.line(shown)}"
  end

  def message(:no_destination),
    do: "no destination: stomp://host/queue/a, or stomp://host followed by destinations"

  def message(reason), do: CommandLine.message(reason)
end
