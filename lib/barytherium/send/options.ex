defmodule Barytherium.Send.Options do
  @moduledoc false
  # The command line of `mix barytherium.send`.

  alias Barytherium.Client.Outbound
  alias Barytherium.Tail
  alias Barytherium.Tail.Target
  alias Barytherium.Text

  @switches [
    cacertfile: :string,
    certfile: :string,
    content_type: :string,
    count: :integer,
    gzip: :boolean,
    header: :keep,
    help: :boolean,
    insecure: :boolean,
    keyfile: :string,
    lines: :boolean,
    persistent: :boolean,
    rate: :integer
  ]

  defstruct target: nil,
            destination: nil,
            body: nil,
            headers: [],
            cacertfile: nil,
            certfile: nil,
            keyfile: nil,
            insecure: false,
            content_type: nil,
            count: 1,
            gzip: false,
            lines: false,
            persistent: true,
            rate: :infinity

  @type t :: %__MODULE__{
          target: Target.t(),
          destination: String.t(),
          body: nil | String.t(),
          headers: Barytherium.Frame.frame_headers(),
          cacertfile: nil | String.t(),
          certfile: nil | String.t(),
          keyfile: nil | String.t(),
          insecure: boolean(),
          content_type: nil | String.t(),
          count: pos_integer(),
          gzip: boolean(),
          lines: boolean(),
          persistent: boolean(),
          rate: pos_integer() | :infinity
        }

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, String.t()}
  def parse(argv) do
    {opts, arguments, invalid} = OptionParser.parse(argv, strict: @switches, aliases: [h: :help])

    cond do
      opts[:help] ->
        :help

      invalid != [] ->
        {:error, invalid |> hd() |> Tail.Options.invalid() |> Tail.Options.message()}

      true ->
        check(opts, arguments)
    end
  end

  defp check(opts, arguments) do
    texts = Keyword.get_values(opts, :header)
    given = opts |> Keyword.delete(:header) |> Map.new()

    with {:ok, headers} <- headers(texts),
         :ok <- positive(given, [:count, :rate]),
         :ok <- files(given, [:cacertfile, :certfile, :keyfile]),
         {:ok, source} <- source(arguments, given) do
      options = struct!(__MODULE__, given)
      {:ok, struct!(options, Map.put(source, :headers, headers ++ own_headers(options)))}
    end
  end

  defp headers(texts) do
    headers = Enum.map(texts, &(&1 |> String.split(":", parts: 2) |> List.to_tuple()))

    case Enum.find(Enum.zip(texts, headers), fn {_text, header} -> not header?(header) end) do
      nil ->
        {:ok, headers}

      {text, _header} ->
        {:error,
         "--header is NAME:VALUE, and none of destination, receipt, transaction: #{Text.line(text)}"}
    end
  end

  defp header?({_name, _value} = header) do
    Outbound.check_headers!(:send, [header]) == :ok
  rescue
    ArgumentError -> false
  end

  defp header?(_no_colon), do: false

  defp own_headers(options) do
    type = if options.content_type, do: [{"content-type", options.content_type}], else: []
    if options.gzip, do: type ++ [{"content-encoding", "gzip"}], else: type
  end

  defp positive(given, names) do
    case Enum.find(names, &(Map.get(given, &1, 1) < 1)) do
      nil -> :ok
      name -> {:error, "--#{name} cannot be #{given[name]}"}
    end
  end

  defp files(given, names) do
    case Enum.find(names, &(given[&1] && not File.regular?(given[&1]))) do
      nil -> :ok
      name -> {:error, "there is no file #{Text.line(given[name])}"}
    end
  end

  defp source([], _given), do: {:error, Tail.Options.message(:url)}

  defp source([url | rest], given) do
    with {:ok, target} <- Target.parse(url),
         {:ok, body} <- body(rest, given) do
      case target.destination do
        nil -> {:error, "no destination: stomp://host/queue/a"}
        destination -> {:ok, %{target: target, destination: destination, body: body}}
      end
    else
      :error -> {:error, Tail.Options.message(:url)}
      error -> error
    end
  end

  defp body([], %{lines: true}), do: {:ok, nil}

  defp body(_body, %{lines: true}),
    do: {:error, "--lines reads the messages from stdin, so there is no BODY"}

  defp body([body], _given), do: {:ok, body}
  defp body([], _given), do: {:error, "no BODY: a text, - for stdin, or @FILE; or --lines"}
  defp body(_more, _given), do: {:error, "more than one BODY: put it in quotes"}
end
