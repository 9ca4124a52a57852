defmodule Barytherium.Tail.Target do
  @moduledoc false
  # The broker that a URL names. Unlike in a URL of `Barytherium.Client`, the path is a destination.

  @schemes ["stomp", "stomp+ssl"]

  @enforce_keys [:url, :vhost, :destination, :secure, :login]
  # `url` is a function, because the URL may contain a password. `login` is nil if no password is missing.
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          url: (... -> String.t()),
          vhost: String.t(),
          destination: nil | String.t(),
          secure: boolean(),
          login: nil | String.t()
        }

  @spec parse(String.t()) :: {:ok, t()} | :error | {:error, {:query, String.t()}}
  def parse(text) do
    with {:ok, %URI{scheme: scheme, host: host, fragment: nil} = uri}
         when scheme in @schemes and host not in [nil, ""] <- text |> encode_path() |> URI.new(),
         true <- uri.port in [nil | Enum.to_list(1..65_535)],
         true <- decodes?(text),
         {:ok, vhost} <- vhost(URI.decode_query(uri.query || "")) do
      url = URI.to_string(%{uri | path: nil, query: nil})

      {:ok,
       %__MODULE__{
         url: fn -> url end,
         vhost: vhost,
         destination: destination(uri.path),
         secure: scheme == "stomp+ssl",
         login: login_without_password(uri.userinfo)
       }}
    else
      {:error, {:query, _name}} = error -> error
      _not_such_a_url -> :error
    end
  end

  defp vhost(query) when query == %{}, do: {:ok, "/"}
  defp vhost(%{"host" => vhost} = query) when map_size(query) == 1, do: {:ok, vhost}

  defp vhost(query) do
    {name, _value} = Enum.find(query, fn {name, _value} -> name != "host" end)
    {:error, {:query, name}}
  end

  # Destinations have characters that URLs do not have: `/topic/a.#` and `/topic/PRICE.>`, for example.
  defp encode_path(text) do
    case Regex.run(~r{\A([^/]*//[^/]*)(/[^?]*)(.*)\z}s, text, capture: :all_but_first) do
      [server, path, query] ->
        encode = fn <<character>> -> "%" <> Base.encode16(<<character>>) end
        server <> String.replace(path, ~r/[#<> "^`{|}\\]/, encode) <> query

      nil ->
        text
    end
  end

  # `URI.decode/1` leaves wrong codes as they are. No such destination exists, so nothing would come.
  defp decodes?(text),
    do: not (text =~ ~r/%(?![0-9A-Fa-f]{2})/) and text |> URI.decode() |> String.valid?()

  defp destination(path) when path in [nil, "", "/"], do: nil
  defp destination(path), do: URI.decode(path)

  defp login_without_password(nil), do: nil

  defp login_without_password(userinfo) do
    case userinfo |> String.split(":", parts: 2) |> Enum.map(&URI.decode/1) do
      [login] -> login
      [_login, _password] -> nil
    end
  end
end
