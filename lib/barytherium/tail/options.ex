defmodule Barytherium.Tail.Options do
  @moduledoc false
  # The command line.

  alias Barytherium.Client.Outbound
  alias Barytherium.Tail.Target
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
    help: :boolean,
    insecure: :boolean,
    keyfile: :string,
    rate: :integer,
    save: :string,
    seconds: :integer,
    size: :integer
  ]

  # The least and the most of each number. The most are: the longest timer of the VM; more than a feed can
  # send; the default of `max_body`. Any integer is less than the atom `:infinity`.
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
            size: 256

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
          size: non_neg_integer()
        }

  @type reason ::
          {:unknown, String.t()}
          | {:invalid, String.t(), String.t()}
          | {:format, String.t()}
          | {:header, String.t()}
          | {:outside, :count | :seconds | :rate | :size, integer()}
          | {:no_file, String.t()}
          | {:destination, String.t()}
          | :url
          | :no_destination

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, reason()}
  def parse(argv) do
    {opts, arguments, invalid} = OptionParser.parse(argv, strict: @switches, aliases: [h: :help])

    cond do
      opts[:help] -> :help
      invalid != [] -> {:error, invalid(hd(invalid))}
      true -> check(opts, arguments)
    end
  end

  @doc "The reason that `OptionParser` found."
  @spec invalid({String.t(), nil | String.t()}) :: reason()
  def invalid({name, nil}), do: {:unknown, name}
  def invalid({name, value}), do: {:invalid, name, value}

  defp check(opts, arguments) do
    with {:ok, format} <- format(opts[:format] || "pretty"),
         {:ok, headers} <- headers(Keyword.get_values(opts, :header)),
         :ok <- within_limits(opts),
         :ok <- files(Keyword.take(opts, [:cacertfile, :certfile, :keyfile])),
         {:ok, from} <- source(arguments) do
      given = opts |> Keyword.drop([:header, :format]) |> Map.new()
      options = struct!(__MODULE__, Map.merge(from, given))
      {:ok, %{options | format: format, headers: headers}}
    end
  end

  defp format(name) do
    with :error <- Map.fetch(@formats, name), do: {:error, {:format, name}}
  end

  defp headers(texts) do
    headers = Enum.map(texts, &(&1 |> String.split(":", parts: 2) |> List.to_tuple()))

    case Enum.find(Enum.zip(texts, headers), fn {_text, header} -> not header?(header) end) do
      nil -> {:ok, headers}
      {text, _header} -> {:error, {:header, text}}
    end
  end

  defp header?({_name, _value} = header) do
    Outbound.check_headers!(:subscribe, [header]) == :ok
  rescue
    ArgumentError -> false
  end

  defp header?(_no_colon), do: false

  defp within_limits(opts) do
    outside? = fn {name, {least, most}} ->
      value = Keyword.get(opts, name, least)
      value < least or value > most
    end

    case Enum.find(@limits, outside?) do
      nil -> :ok
      {name, _limits} -> {:error, {:outside, name, opts[name]}}
    end
  end

  defp files(opts) do
    case Enum.find(opts, fn {_name, path} -> not File.regular?(path) end) do
      nil -> :ok
      {_name, path} -> {:error, {:no_file, path}}
    end
  end

  defp source([]), do: {:ok, %{destinations: ["/topic/feed"], seconds: @own_feed_seconds}}

  defp source([url | more]) do
    with {:ok, target} <- Target.parse(url),
         {:ok, destinations} <- destinations(List.wrap(target.destination) ++ more) do
      {:ok, %{target: target, destinations: destinations}}
    else
      :error -> {:error, :url}
      error -> error
    end
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
  def message({:unknown, name}), do: "unknown option #{Text.line(name)}, or its value is missing"
  def message({:invalid, name, value}), do: "#{name} cannot be #{Text.line(value)}"

  def message({:format, name}),
    do: "--format is pretty, json or raw, and not #{Text.line(name)}"

  def message({:header, text}) do
    "--header is NAME:VALUE, and none of those that are set anyway (id, destination, ack, receipt): " <>
      Text.line(text)
  end

  def message({:outside, name, value}) do
    {_least, most} = @limits[name]
    limit = if value > most, do: ": it is at most #{most}", else: ""
    "--#{name} cannot be #{value}#{limit}"
  end

  def message({:no_file, path}), do: "there is no file #{Text.line(path)}"

  def message({:destination, name}) do
    # A second URL may contain a password.
    shown = String.replace(name, ~r{//[^/]*@}, "//...@")
    "this is not a destination, and only the first argument is a URL: #{Text.line(shown)}"
  end

  # The URL is not shown, because it may contain a password.
  def message(:url),
    do: "the first argument is not a URL of the form stomp://user@host:port/destination"

  def message(:no_destination),
    do: "no destination: stomp://host/queue/a, or stomp://host followed by destinations"
end
