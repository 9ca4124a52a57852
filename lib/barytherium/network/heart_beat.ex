defmodule Barytherium.Network.HeartBeat do
  @moduledoc false
  # Calculates the heart-beat intervals (STOMP 1.2, "Heart-beating"). All are in milliseconds; 0
  # means no heart-beats.

  require Logger

  alias Barytherium.Schema

  @type pair :: {non_neg_integer(), non_neg_integer()}

  @doc """
  The intervals that follow from the headers of the client's CONNECT and the server's CONNECTED.
  Returns `{hb_send, hb_recv}` from the client's point of view.
  """
  @spec agree(Barytherium.Frame.frame_headers(), Barytherium.Frame.frame_headers()) :: pair()
  def agree(client_headers, server_headers) do
    {client_sends, client_wants} = parse(client_headers)
    {server_sends, server_wants} = parse(server_headers)
    {interval(client_sends, server_wants), interval(server_sends, client_wants)}
  end

  defp interval(0, _wanted), do: 0
  defp interval(_sent, 0), do: 0
  # A server may ask for more than the VM can wait.
  defp interval(sent, wanted), do: sent |> max(wanted) |> min(Schema.longest_wait())

  defp parse(headers) do
    case List.keyfind(headers, "heart-beat", 0) do
      nil -> {0, 0}
      {_name, value} -> parse_value(value)
    end
  end

  defp parse_value(value) do
    with [sends, wants] <- String.split(value, ","),
         {sends, ""} when sends >= 0 <- Integer.parse(String.trim(sends)),
         {wants, ""} when wants >= 0 <- Integer.parse(String.trim(wants)) do
      {sends, wants}
    else
      _malformed ->
        Logger.warning("ignoring the heart-beat header #{inspect(value)}: not two numbers")
        {0, 0}
    end
  end
end
